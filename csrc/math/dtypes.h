// Storage types and how they become values of the arithmetic. Only these functions know how a buffer is
// stored; branch-free, so that the compiler vectorises them on any instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "config.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

SFPLUS_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

SFPLUS_INLINE float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// -- to the arithmetic: exact, or from double to nearest even ------------------------------------

template <class T>
SFPLUS_INLINE T widen(double x) {
  return static_cast<T>(x);
}

template <class T>
SFPLUS_INLINE T widen(float x) {
  return static_cast<T>(x);
}

template <class T>
SFPLUS_INLINE T widen(bfloat16 x) {
  return static_cast<T>(float_of(static_cast<std::uint32_t>(x.bits) << 16));
}

template <class T>
SFPLUS_INLINE T widen(float16 x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7FFFu;
  // exponents are biased by 15 in float16 and by 127 in float32; 31 stands for Inf and NaN, as 255 does
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t special = normal + (112u << 23);
  // a subnormal is a multiple of 2^-24; by way of an integer, so that flushing subnormals is no danger
  const std::uint32_t subnormal = bits_of(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  const std::uint32_t value =
      magnitude >= 0x7C00u ? special : (magnitude < 0x0400u ? subnormal : normal);
  return static_cast<T>(float_of(value | sign));
}

// -- to storage: to nearest even ------------------------------------------------------------------

template <class Stored>
SFPLUS_INLINE Stored narrow(double x);
template <class Stored>
SFPLUS_INLINE Stored narrow(float x);

template <>
SFPLUS_INLINE double narrow<double>(double x) {
  return x;
}

template <>
SFPLUS_INLINE float narrow<float>(float x) {
  return x;
}

template <>
SFPLUS_INLINE bfloat16 narrow<bfloat16>(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return {static_cast<std::uint16_t>(is_nan ? 0x7FC0u : rounded)};
}

template <>
SFPLUS_INLINE float16 narrow<float16>(float x) {
  const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits_of(x) & 0x7FFFFFFFu;
  // rounding may carry into the exponent, and from the largest one into that of Inf: both are right
  const std::uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // below 2^-14 the last place is 2^-24, that of 0.5f: adding 0.5f rounds there
  const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const std::uint32_t capped = magnitude >= (143u << 23) ? 0x7C00u : finite;
  const std::uint32_t value = magnitude > 0x7F800000u ? 0x7E00u : capped;
  return {static_cast<std::uint16_t>(value | sign)};
}

// -- memory of any alignment ------------------------------------------------------------------------

template <class Stored>
SFPLUS_INLINE Stored load(const Stored* from) {
  Stored value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Stored>
SFPLUS_INLINE void store(Stored* to, Stored value) {
  std::memcpy(to, &value, sizeof value);
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
