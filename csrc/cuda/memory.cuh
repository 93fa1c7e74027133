// Access to device memory: a few elements at a time, with a hint to the caches.
#pragma once

#include <cstdint>
#include <cstring>

#include "../math/dtypes.h"

namespace sfplus {
namespace cuda {

// A word of memory that one instruction moves.
template <int bytes>
struct Word;
template <>
struct Word<1> {
  using Type = unsigned char;
};
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned int;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

// What becomes of a line in the cache: STREAM for what is not touched again before the next step, so that
// it makes room for what is; KEEP for what the next kernels read. What is read to be kept must not be written
// by the same kernel.
enum class Cache { STREAM, KEEP };

// n neighbouring elements: the most words of 16 bytes that they make, or one smaller word.
template <class Stored, int n>
struct Pack {
  static constexpr int kBytes = static_cast<int>(sizeof(Stored)) * n;
  static constexpr int kWord = kBytes < 16 ? kBytes : 16;
  static constexpr int kWords = kBytes / kWord;
  using Type = typename Word<kWord>::Type;

  Stored elements[n];

  template <Cache cache>
  static __device__ __forceinline__ Pack read(const Stored* from) {
    const Type* address = reinterpret_cast<const Type*>(from);
    Type words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = cache == Cache::STREAM ? __ldcs(address + i) : __ldg(address + i);
    }
    Pack pack;
    std::memcpy(pack.elements, words, sizeof words);
    return pack;
  }

  template <Cache cache>
  __device__ __forceinline__ void write(Stored* to) const {
    Type* address = reinterpret_cast<Type*>(to);
    Type words[kWords];
    std::memcpy(words, elements, sizeof words);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if (cache == Cache::STREAM) {
        __stcs(address + i, words[i]);
      } else {
        __stcg(address + i, words[i]);  // in the L2 cache: a multiprocessor's own is not for writing
      }
    }
  }
};

// Whether a pack of n elements may be accessed here. An address of 0, a tensor that there is not, is aligned.
template <class Stored, int n>
__device__ __forceinline__ bool aligned(const Stored* address) {
  return reinterpret_cast<std::uintptr_t>(address) % Pack<Stored, n>::kWord == 0;
}

}  // namespace cuda
}  // namespace sfplus
