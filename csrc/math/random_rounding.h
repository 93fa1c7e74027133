// Rounding up or down at random, to what a 16-bit format has, so that the mean is right. Nothing is stored but a seed:
// a random word is a hash of what it is for, and so the same for any number of threads and processes, any chunks and
// any device. All of it is arithmetic modulo 2^32.
#pragma once

#include <cstdint>

#include "config.h"
#include "dtypes.h"
#include "layout.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

SFPLUS_INLINE std::uint32_t mix(std::uint32_t h) {
  h ^= h >> 16;
  h *= 0x7FEB352Du;
  h ^= h >> 15;
  h *= 0x846CA68Bu;
  return h ^ (h >> 16);
}

// Of one tensor in one step: KEY_A and KEY_B of layout.h.
struct NoiseKey {
  std::uint32_t a, b;
};

SFPLUS_INLINE NoiseKey noise_key(std::uint32_t seed, std::uint32_t tensor, std::uint32_t step) {
  const std::uint32_t a = mix(mix(seed ^ 0x9E3779B9u) + mix(tensor) * 0x85EBCA6Bu + step);
  return {a, mix(a ^ 0xA511E9B3u)};
}

// From the run state, after finalize: the step is the tensor's own count, this step included.
SFPLUS_INLINE NoiseKey noise_key(const double* settings, const double* tensors, std::int64_t slot) {
  const auto word = [](double x) { return static_cast<std::uint32_t>(static_cast<std::uint64_t>(x)); };
  return noise_key(word(settings[Setting::ROUNDING_SEED]), static_cast<std::uint32_t>(slot),
                   word(tensors[slot * Scalar::WIDTH + Scalar::STEP]));
}

// Of element ``index`` of the whole tensor; of several of them where Word is a vector.
template <class Word>
SFPLUS_INLINE Word random_word(NoiseKey key, Word index) {
  Word h = index + key.a;
  h ^= h >> 16;
  h *= 0x7FEB352Du;
  h ^= h >> 15;
  h += key.b;
  h *= 0x846CA68Bu;
  return h ^ (h >> 16);
}

// For what is rounded once more in the same step, by other bits than the first time.
template <class Word>
SFPLUS_INLINE Word turned(Word word) {
  return (word << 16) | (word >> 16);
}

constexpr std::uint32_t kMagnitude = 0x7FFFFFFFu, kInfinity = 0x7F800000u;

// -- to bfloat16: the upper 16 bits of the word count below the last place -------------------------------------

SFPLUS_INLINE bfloat16 bfloat16_at_random(float x, std::uint32_t word) {
  const std::uint32_t rounded = (bits_of(x) + (word >> 16)) >> 16;
  const bool is_nan = (bits_of(x) & kMagnitude) > kInfinity;
  return {static_cast<std::uint16_t>(is_nan ? 0x7FC0u : rounded)};
}

// -- to float16: 13 bits are below the last place ----------------------------------------------------------------

template <class Word>
SFPLUS_INLINE Word part_of_float16(Word word) {
  return word & 0x1FFFu;
}

constexpr float kLargestFloat16 = 65504;
constexpr std::uint32_t kLeastNormalFloat16 = 113u << 23;  // the bits of 2^-14

// Toward zero; x is from 0 to below 65,536, or NaN.
SFPLUS_INLINE std::uint32_t float16_below(float x) {
#ifdef __CUDA_ARCH__
  unsigned short half;
  asm("cvt.rz.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half > 0x7C00u ? 0x7E00u : half;
#else
  const std::uint32_t bits = bits_of(x);
  const bool small = bits < kLeastNormalFloat16;
  const auto subnormal = static_cast<std::uint32_t>(static_cast<std::int32_t>((small ? x : 0.0f) * 0x1p24f));
  const std::uint32_t finite = small ? subnormal : (bits - (112u << 23)) >> 13;
  return bits > kInfinity ? 0x7E00u : finite;
#endif
}

// ``part`` of the float's bits that float16 does not have is added to ``magnitude``, below 65,520, and the rest dropped.
// Below 2^-14 the last place is that of 2^-14.
SFPLUS_INLINE std::uint32_t cut_to_float16(float magnitude, std::uint32_t part) {
  const std::uint32_t exponent = bits_of(magnitude) & kInfinity;
  const std::uint32_t binade = exponent < kLeastNormalFloat16 ? kLeastNormalFloat16 : exponent;
  return float16_below(magnitude + (float_of(binade | part) - float_of(binade)));
}

SFPLUS_INLINE float16 float16_at_random(float x, std::uint32_t part) {
  const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const float whole = float_of(bits_of(x) & kMagnitude);
  const float magnitude = kLargestFloat16 < whole ? kLargestFloat16 : whole;  // a NaN stays one
  return {static_cast<std::uint16_t>(cut_to_float16(magnitude, part) | sign)};
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
