// Moments in 8 bits (Format::QUARTER). v has 5 bits of exponent and 3 of mantissa above the lowest exponent of its
// block; m has a sign, 4 and 3 bits, in units of the square root of v as it is stored. So |m| / sqrt(v) is bounded as
// the moments themselves bound it, and m needs no scale of its own. Both are rounded up or down at random.
//
// A "rank" is what is left of a float's bits above its third bit of mantissa: 8 of them to a power of two.
#pragma once

#include <cstdint>

#include "config.h"
#include "random_rounding.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

constexpr int kScaledTogether = 32;  // elements of a block: they share the lowest exponent of v

// -- which bits of a random word are whose ----------------------------------------------------------------------

template <class Word>
SFPLUS_INLINE Word part_of_y(Word word) {
  return word & 0xFFu;
}
// For float16_at_random: 10 bits, and a half.
template <class Word>
SFPLUS_INLINE Word part_of_e(Word word) {
  return ((word >> 5) & 0x1FF8u) | 4u;
}
// Of a float's bits below the third of mantissa: 9 random ones for v and 5 for m, and a half.
template <class Word>
SFPLUS_INLINE Word part_of_v(Word word) {
  return ((word >> 7) & 0xFF800u) | 0x400u;
}
template <class Word>
SFPLUS_INLINE Word part_of_m(Word word) {
  return ((word >> 12) & 0xF8000u) | 0x4000u;
}

// -- v -----------------------------------------------------------------------------------------------------------

constexpr std::uint32_t kLargestRank = (kInfinity >> 20) - 1;  // what is not finite is held there
constexpr std::uint32_t kRanksOfABlock = 32 * 8;

// 0 for 0 alone.
SFPLUS_INLINE std::uint32_t rank_at_random(float v, std::uint32_t word) {
  const std::uint32_t bits = bits_of(v), rank = (bits + part_of_v(word)) >> 20;
  const std::uint32_t positive = bits < 1 ? bits : 1;
  return rank < positive ? positive : rank > kLargestRank ? kLargestRank : rank;
}

// Of a block, whose largest rank is given, the rank of code 0; that is the lowest exponent, times 8. It is an exponent
// of 1 at least, so that no code means a subnormal.
SFPLUS_INLINE std::uint32_t lowest_rank(std::uint32_t largest) {
  const std::uint32_t exponent = largest >> 3;
  return (exponent > 32 ? exponent - 31 : 1) << 3;
}

// As it is stored: of what is positive 1 above the lowest, at least.
SFPLUS_INLINE std::uint32_t stored_rank(std::uint32_t rank, std::uint32_t lowest) {
  return rank == 0 ? 0 : rank > lowest ? rank : lowest + 1;
}

SFPLUS_INLINE std::uint32_t rank_of_code(std::uint8_t code, std::uint32_t lowest) {
  return code == 0 ? 0 : code + lowest;
}

SFPLUS_INLINE std::uint8_t code_of_rank(std::uint32_t rank, std::uint32_t lowest) {
  return static_cast<std::uint8_t>(rank == 0 ? 0 : rank - lowest);
}

SFPLUS_INLINE float float_of_rank(std::uint32_t rank) { return float_of(rank << 20); }

// -- the square root of v, by its rank ---------------------------------------------------------------------------

// The bits of sqrt((8 + mantissa) / 16) for an even exponent and of sqrt((8 + mantissa) / 8) for an odd one, and of
// the reciprocal of what that is rounded to. All others are these times a power of two: rank & 15 says which.
#define SFPLUS_ROOTS                                                                                   \
  0x3F3504F3u, 0x3F400000u, 0x3F4A62C2u, 0x3F544395u, 0x3F5DB3D7u, 0x3F66C15Au, 0x3F6F7751u,           \
      0x3F77DEF6u, 0x3F800000u, 0x3F87C3B6u, 0x3F8F1BBDu, 0x3F9617E3u, 0x3F9CC471u, 0x3FA32B2Bu,       \
      0x3FA953FDu, 0x3FAF456Fu
#define SFPLUS_INVERSE_ROOTS                                                                           \
  0x3FB504F3u, 0x3FAAAAABu, 0x3FA1E89Bu, 0x3F9A5FB2u, 0x3F93CD3Au, 0x3F8E00D5u, 0x3F88D677u,           \
      0x3F8432A5u, 0x3F800000u, 0x3F715BF0u, 0x3F64F92Eu, 0x3F5A514Au, 0x3F5105EBu, 0x3F48D2ABu,       \
      0x3F418490u, 0x3F3AF4BAu

#ifdef __CUDACC__
__device__ const std::uint32_t kRoots[] = {SFPLUS_ROOTS};
__device__ const std::uint32_t kInverseRoots[] = {SFPLUS_INVERSE_ROOTS};
#else
constexpr std::uint32_t kRoots[] = {SFPLUS_ROOTS};
constexpr std::uint32_t kInverseRoots[] = {SFPLUS_INVERSE_ROOTS};
#endif

SFPLUS_INLINE std::uint32_t from_table(const std::uint32_t* table, std::uint32_t rank) {
#ifdef __CUDA_ARCH__
  return __ldg(table + (rank & 15));
#else
  return table[rank & 15];
#endif
}

// The exponent of the root is half of v's.
constexpr std::uint32_t kHalvedBias = 63u << 23;

SFPLUS_INLINE float root_of_rank(std::uint32_t rank) {
  return float_of(from_table(kRoots, rank) + ((rank >> 4) << 23) - kHalvedBias);
}

// A code of m is the upper half of a float16: 2^-8 times the number that its bits are, of 4 bits of exponent and 3 of
// mantissa, which is 32 m / sqrt(v). So the float16 is m / kUnitOfM / sqrt(v).
constexpr float kUnitOfM = 8;

SFPLUS_INLINE float inverse_unit_of_m(std::uint32_t rank) {
  return float_of(from_table(kInverseRoots, rank) - ((rank >> 4) << 23) + (kHalvedBias - (3u << 23)));
}

// -- m -----------------------------------------------------------------------------------------------------------

constexpr float kLargestCodeOfM = 1.75f;

// m / kUnitOfM / sqrt(v).
SFPLUS_INLINE float unit_of_code(std::uint8_t code) {
  const std::uint32_t bits = code;
  const float16 half = {static_cast<std::uint16_t>(((bits & 0x80u) << 8) | ((bits & 0x7Fu) << 7))};
  return widen<float>(half);
}

// m / kUnitOfM: whoever multiplies it with beta1 has a factor for it.
SFPLUS_INLINE float exp_avg_of_code(std::uint8_t code, std::uint32_t rank) {
  return unit_of_code(code) * root_of_rank(rank);
}

// 0 beside a v of 0.
SFPLUS_INLINE std::uint8_t code_of_exp_avg(float m, std::uint32_t rank, std::uint32_t word) {
  const std::uint32_t x = bits_of(m * inverse_unit_of_m(rank));
  const float whole = float_of(x & kMagnitude);
  const float magnitude = whole < kLargestCodeOfM ? whole : kLargestCodeOfM;  // and so is a NaN
  const std::uint32_t code = (cut_to_float16(magnitude, part_of_m(word)) >> 7) | ((x >> 24) & 0x80u);
  return static_cast<std::uint8_t>(rank == 0 ? 0 : code);
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
