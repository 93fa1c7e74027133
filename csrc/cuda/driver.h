// NVIDIA's driver, found at run time: without one this imports all the same. Machine code is handed in as bytes, once
// for each device; then kernels are launched by their numbers (kernels.h). RuntimeErrors have the driver's own text.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace sfplus {
namespace cuda {

// Where to launch: the device's number and its stream, as torch.cuda.Stream.cuda_stream has it.
struct Queue {
  int device;
  std::intptr_t stream;
};

// The newest CUDA that the driver serves, 1000 major + 10 minor: 0 without a driver. Makes no context.
int driver_version();

// Compute capability of a device. Makes no context.
std::pair<int, int> capability(int device);

// Hands in the machine code (or PTX, ending in a zero) for a device, in whose primary context it is loaded. No other
// context is made, and the one that is current stays so. Once is enough.
void load(int device, const char* image);

// A launch of so many blocks of kThreads; none if that is 0. Nothing waits for it. Where it ``follows`` another kernel
// of ours that was launched right before it, its beginning may overlap that one's end: see order.cuh. A block has so many
// bytes of shared memory beside its own.
void launch(int kernel, const Queue& queue, std::int64_t n_blocks, void** arguments, bool follows,
            unsigned shared_bytes = 0);

}  // namespace cuda
}  // namespace sfplus
