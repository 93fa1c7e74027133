// The four operations of a step on a CUDA device, and what can be said of the device. All pointers in Table and
// Run are device memory; nothing waits for the device. No CUDA header is needed to include this.
#pragma once

#include <cstdint>
#include <string>

#include "../table.h"

namespace sfplus {
namespace cuda {

// Where to launch: the device's number and its stream, as torch.cuda.Stream.cuda_stream has it.
struct Queue {
  int device;
  std::intptr_t stream;
};

// Slot i of partials, (n_partials, Sum::WIDTH), becomes the sums over the chunks i, i + n_partials, ...; the
// sum of g e is 0 without with_e.
void reduce(const Table& table, int param_dtype, int grad_dtype, bool with_e, double* partials,
            std::int64_t n_partials, const Queue& queue);

// As csrc/cpu/passes.h has it.
void finalize(const double* partials, std::int64_t n_partials, const std::int64_t* rows,
              std::int64_t n_rows, const Run& run, double max_coefficient, const Queue& queue);

// Nothing is written on a skipped step. The rows are in device memory, so the caller says which moments they
// have.
void update(const Table& table, int param_dtype, int grad_dtype, bool has_exp_avg, bool has_exp_avg_sq,
            const Run& run, const Queue& queue);

// move is one of Move.
void interpolate(const Table& table, int param_dtype, const Run& run, int move, const Queue& queue);

// 1000 major + 10 minor of the CUDA runtime that is linked in, and of the newest that the driver serves: 0
// without a driver.
int runtime_version();
int driver_version();

// Why the kernels cannot run on this device, in CUDA's words; empty if they can.
std::string device_problem(int device);

}  // namespace cuda
}  // namespace sfplus
