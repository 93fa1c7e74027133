// The sums of a drift monitor, in the update pass: of values that a thread has in registers anyway, into a slot for each chunk.
// Where nobody monitors it is a few instructions that are passed over, and the kernel keeps its registers, and so the warps of
// a multiprocessor: those that have none to spare keep the sums elsewhere.
#pragma once

#include <cstring>

#include "../math/layout.h"
#include "drift.h"
#include "memory.cuh"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

// For which the compiler works: on later GPUs it needs more registers for the same, and some updates would spill with those that
// they have on earlier ones.
#ifdef __CUDA_ARCH__
constexpr int kArch = __CUDA_ARCH__;
#else
constexpr int kArch = 0;
#endif

// Whether somebody monitors. The compiler is not to know that the answer is always the same: it would make a second loop of it.
__device__ __forceinline__ bool watched(const Table& table) {
  int monitored = table.drift != nullptr;
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(monitored));
#endif
  return monitored != 0;
}

template <class State>
__device__ __forceinline__ void add_drift(State old_y, State y, State g, State (&sums)[Drift::WIDTH]) {
  const State moved = y - old_y;
  sums[Drift::WEIGHT_SQ] += y * y;
  sums[Drift::GRAD_SQ] += g * g;
  sums[Drift::UPDATE_SQ] += moved * moved;
  sums[Drift::WEIGHT_DOT_UPDATE] += y * moved;
}

// By all threads of a warp, which has done this chunk: always the same additions in the same order.
template <class State>
__device__ __forceinline__ void write_drift(const Table& table, std::int64_t chunk, int lane, State (&sums)[Drift::WIDTH]) {
#pragma unroll 1
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int column = 0; column < Drift::WIDTH; ++column) {
      sums[column] += __shfl_xor_sync(0xFFFFFFFFu, sums[column], distance);
    }
  }
  if (lane != 0) return;
#pragma unroll
  for (int column = 0; column < Drift::WIDTH; ++column) {
    table.drift[chunk * Drift::WIDTH + column] = static_cast<double>(sums[column]);
  }
}

// The shared memory that a launch was given: kDriftBytes where somebody monitors, else none.
__device__ __forceinline__ uint4* given_memory() {
#ifdef SFPLUS_STAND_IN
  return static_cast<uint4*>(host_cuda::given_memory());
#else
  extern __shared__ uint4 given[];
  return given;
#endif
}

// One thread's part of it: columns of words of 16 bytes, which no other thread reads.
template <class State, int n>
struct OwnColumn {
  using Values = Pack<State, n>;
  using Word = typename Values::Type;

  static __device__ __forceinline__ void put(int column, const State (&values)[n]) {
    Word words[Values::kWords];
    std::memcpy(words, values, sizeof words);
#pragma unroll
    for (int i = 0; i < Values::kWords; ++i) *place(column + i) = words[i];
  }
  static __device__ __forceinline__ void get(int column, State (&values)[n]) {
    Word words[Values::kWords];
#pragma unroll
    for (int i = 0; i < Values::kWords; ++i) words[i] = *place(column + i);
    std::memcpy(values, words, sizeof words);
  }

 private:
  static __device__ __forceinline__ Word* place(int column) {
    return reinterpret_cast<Word*>(given_memory() + column * kThreads + threadIdx.x);
  }
};

// Sums in registers: element by element.
template <class State, bool in_memory>
struct DriftSums {
  State sums[Drift::WIDTH] = {};

  __device__ __forceinline__ void begin(const Table&) {}
  __device__ __forceinline__ void add(const Table& table, State old_y, State y, State g) {
    if (watched(table)) add_drift(old_y, y, g, sums);
  }
  template <int n, class Grad>
  __device__ __forceinline__ void keep(const Table&, const State (&)[n], const Grad (&)[n]) {}
  template <int n>
  __device__ __forceinline__ void add_kept(const Table&, const State (&)[n]) {}
  __device__ __forceinline__ void write(const Table& table, std::int64_t chunk, int lane) {
    if (table.drift != nullptr) write_drift(table, chunk, lane, sums);
  }
};

// And in shared memory: what n elements are before the update is kept there, until there are registers again.
template <class State>
struct DriftSums<State, true> {
  static constexpr int kBefore = 0, kGradient = 1, kSums = 2;  // columns
  using Sums = OwnColumn<State, Drift::WIDTH>;

  __device__ __forceinline__ void begin(const Table& table) {
    const State zeros[Drift::WIDTH] = {};
    if (watched(table)) Sums::put(kSums, zeros);
  }
  __device__ __forceinline__ void add(const Table&, State, State, State) {}
  template <int n, class Grad>
  __device__ __forceinline__ void keep(const Table& table, const State (&old_y)[n], const Grad (&grad)[n]) {
    if (!watched(table)) return;
    State g[n];
#pragma unroll
    for (int i = 0; i < n; ++i) g[i] = widen<State>(grad[i]);
    OwnColumn<State, n>::put(kBefore, old_y);
    OwnColumn<State, n>::put(kGradient, g);
  }
  template <int n>
  __device__ __forceinline__ void add_kept(const Table& table, const State (&y)[n]) {
    if (!watched(table)) return;
    State old_y[n], g[n], sums[Drift::WIDTH];
    OwnColumn<State, n>::get(kBefore, old_y);
    OwnColumn<State, n>::get(kGradient, g);
    Sums::get(kSums, sums);
#pragma unroll
    for (int i = 0; i < n; ++i) add_drift(old_y[i], y[i], g[i], sums);
    Sums::put(kSums, sums);
  }
  __device__ __forceinline__ void write(const Table& table, std::int64_t chunk, int lane) {
    if (table.drift == nullptr) return;
    State sums[Drift::WIDTH];
    Sums::get(kSums, sums);
    write_drift(table, chunk, lane, sums);
  }
};

}  // namespace cuda
}  // namespace sfplus
