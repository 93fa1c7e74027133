// What the kernels use of CUDA's language, on the host: read first when the tests compile csrc/cuda with a C++
// compiler. A launch runs its blocks one after the other; the threads of a block are fibers that take turns at
// barriers (fibers.cpp). Vector accesses check their alignment, as a GPU would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time
#define __grid_constant__
#define SFPLUS_STAND_IN

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace host_cuda {

struct Index {
  unsigned x;
};
extern Index thread_index, block_index, grid_size;

// Runs a kernel; returns what is wrong with it, such as a barrier that some threads do not reach.
std::string run(unsigned n_blocks, unsigned n_threads, unsigned shared_bytes, const std::function<void()>& thread);
// The block's shared memory of a size that the launch says; full of ones when it begins.
void* given_memory();
// Waits for the other threads of the block, or of the warp. Returns whether one of them said true.
bool block_barrier(bool vote);
bool warp_barrier(bool vote);
// Of some threads of the warp, which follow each other and are as many as a power of two: bits of the mask.
void barrier_of(unsigned mask);
double& shuffle_slot(unsigned thread);
// Counts an access of so many bytes; throws where the address is not a multiple of them.
void access(bool is_store, std::size_t bytes, const void* address);

template <class T>
T load(const T* from) {
  access(false, sizeof(T), from);
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void store(T* to, T value) {
  access(true, sizeof(T), to);
  std::memcpy(to, &value, sizeof value);
}

}  // namespace host_cuda

#define threadIdx (host_cuda::thread_index)
#define blockIdx (host_cuda::block_index)
#define gridDim (host_cuda::grid_size)

template <class T>
T __ldcs(const T* from) {
  return host_cuda::load(from);
}
template <class T>
T __ldg(const T* from) {
  return host_cuda::load(from);
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  host_cuda::store(to, value);
}
template <class T>
void __stcg(T* to, T value) {
  host_cuda::store(to, value);
}

inline void __syncthreads() { host_cuda::block_barrier(false); }
inline int __syncthreads_or(int vote) { return host_cuda::block_barrier(vote != 0) ? 1 : 0; }
inline void __syncwarp() { host_cuda::warp_barrier(false); }
inline int __any_sync(unsigned, int vote) { return host_cuda::warp_barrier(vote != 0) ? 1 : 0; }
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* counter, unsigned last) {
  const unsigned old = *counter;
  *counter = old >= last ? 0 : old + 1;
  return old;
}
// products that no addition is fused with, whatever the compiler's options say
inline float __fmul_rn(float a, float b) {
  float product = a * b;
  asm volatile("" : "+m"(product));
  return product;
}
inline double __dmul_rn(double a, double b) {
  double product = a * b;
  asm volatile("" : "+m"(product));
  return product;
}
inline unsigned __shfl_xor_sync(unsigned mask, unsigned value, int distance) {
  const unsigned self = threadIdx.x, other = self ^ static_cast<unsigned>(distance);
  if ((mask >> other % 32 & 1) == 0) throw std::runtime_error("a thread asks one that is not there");
  host_cuda::shuffle_slot(self) = value;
  host_cuda::barrier_of(mask);
  const unsigned result = static_cast<unsigned>(host_cuda::shuffle_slot(other));
  host_cuda::barrier_of(mask);
  return result;
}
inline double __shfl_xor_sync(unsigned mask, double value, int distance) {
  const unsigned self = threadIdx.x, other = self ^ static_cast<unsigned>(distance);
  if (mask != 0xFFFFFFFFu) throw std::runtime_error("only whole warps exchange a double");
  host_cuda::shuffle_slot(self) = value;
  host_cuda::warp_barrier(false);
  const double result = host_cuda::shuffle_slot(other);
  host_cuda::warp_barrier(false);
  return result;
}
inline float __shfl_xor_sync(unsigned mask, float value, int distance) {
  return static_cast<float>(__shfl_xor_sync(mask, static_cast<double>(value), distance));
}
inline double __shfl_down_sync(unsigned, double value, unsigned distance) {
  const unsigned self = threadIdx.x, other = self + distance;
  host_cuda::shuffle_slot(self) = value;
  host_cuda::warp_barrier(false);
  const double result = other / 32 == self / 32 ? host_cuda::shuffle_slot(other) : value;
  host_cuda::warp_barrier(false);
  return result;
}
