// How kernels are launched: on a device and a stream that the caller names, any error raised with the kernel's
// name and CUDA's own text.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "passes.h"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

void raise_if_failed(cudaError_t error, const std::string& what);

// Makes the device current, and on leaving the one that was.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0, device_;
};

// Blocks for n threads or warps, n_per_block in a block. A grid may have 2^31 - 1 of them.
inline unsigned blocks_for(std::int64_t n, int n_per_block) {
  return static_cast<unsigned>((n + n_per_block - 1) / n_per_block);
}

// The arguments take the types of the kernel's parameters.
template <class... Parameters, class... Arguments>
void launch(const char* name, const Queue& queue, void (*kernel)(Parameters...), unsigned n_blocks,
            int n_threads, const Arguments&... arguments) {
  if (n_blocks == 0) return;
  std::tuple<std::decay_t<Parameters>...> values(arguments...);
  const DeviceGuard guard(queue.device);
  std::apply(
      [&](auto&... value) {
        void* addresses[] = {&value...};
        const cudaError_t error =
            cudaLaunchKernel(kernel, dim3(n_blocks), dim3(n_threads), addresses, 0,
                             reinterpret_cast<cudaStream_t>(queue.stream));
        raise_if_failed(error, std::string("launching the CUDA kernel '") + name + "' on device " +
                                   std::to_string(queue.device));
      },
      values);
}

}  // namespace cuda
}  // namespace sfplus
