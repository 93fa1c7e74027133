// Sums, loss and run state -> coefficients, where no other kernel has done it: one block for what all tensors share,
// and, of many tensors, a thread for each.
#pragma once

#include "finish.cuh"
#include "order.cuh"

namespace sfplus {
namespace cuda {

__device__ __forceinline__ void finalize_pass(const Finish& finish) {
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  finish_step<true>(finish);
}

__device__ __forceinline__ void finalize_tensors_pass(const Finish& finish) {
  let_next_kernel_begin();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  wait_for_earlier_kernels();
  if (i < finish.n_rows && finish.run.globals[Global::SKIP] == 0) finish_tensor(finish, i);
}

}  // namespace cuda
}  // namespace sfplus
