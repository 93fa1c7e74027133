// Which kernel may begin before the one in front of it has ended. A kernel that was launched with the right to do so
// (driver.cpp: GPUs of compute capability 9.0 on) reads what no kernel writes, the tables, and then waits; for any
// other one both functions do nothing.
#pragma once

namespace sfplus {
namespace cuda {

// To be called by every thread before it reads what an earlier kernel wrote, or ends.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin as soon as every block has said so: none of this kernel's is then waiting for a place.
__device__ __forceinline__ void let_next_kernel_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// For a thread that waits for another block.
__device__ __forceinline__ void pause_a_little() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
  __nanosleep(100);
#endif
}

}  // namespace cuda
}  // namespace sfplus
