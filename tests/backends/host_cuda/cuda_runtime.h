// Stands in for CUDA's header of this name when the tests compile csrc/cuda with a C++ compiler: what the
// kernels use of CUDA, on the host. A launch runs its blocks one after the other; the threads of a block are
// fibers that take turns at barriers (fibers.cpp). Vector accesses check their alignment, as a GPU would.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time
#define CUDART_VERSION 13000

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x;
  explicit dim3(unsigned x) : x(x) {}
};

namespace host_cuda {

struct Index {
  unsigned x;
};
extern Index thread_index, block_index;

// Runs a kernel; returns what is wrong with it, such as a barrier that some threads do not reach.
std::string run(unsigned n_blocks, unsigned n_threads, const std::function<void()>& thread);
// Waits for the other threads of the block, or of the warp. Returns whether one of them said true.
bool block_barrier(bool vote);
void warp_barrier();
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

template <class T>
T __ldcs(const T* from) {
  return host_cuda::load(from);
}
template <class T>
T __ldg(const T* from) {
  return host_cuda::load(from);
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
inline double __shfl_down_sync(unsigned, double value, unsigned distance) {
  const unsigned self = threadIdx.x, other = self + distance;
  host_cuda::shuffle_slot(self) = value;
  host_cuda::warp_barrier();
  const double result = other / 32 == self / 32 ? host_cuda::shuffle_slot(other) : value;
  host_cuda::warp_barrier();
  return result;
}

// -- the runtime ------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct Stream*;
struct cudaFuncAttributes {};

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDriverGetVersion(int* version);
template <class T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, T*) {
  return cudaGetLastError();
}

namespace host_cuda {
cudaError_t launch(unsigned n_blocks, unsigned n_threads, const std::function<void()>& thread);

template <class... Parameters, std::size_t... i>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<i...>) {
  kernel(*static_cast<std::decay_t<Parameters>*>(arguments[i])...);
}
}  // namespace host_cuda

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 n_blocks, dim3 n_threads, void** arguments,
                             std::size_t, cudaStream_t) {
  return host_cuda::launch(n_blocks.x, n_threads.x, [=] {
    host_cuda::call(kernel, arguments, std::index_sequence_for<Parameters...>{});
  });
}
