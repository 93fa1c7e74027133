// Values as the 16-bit formats keep them: one at a time, or as many at once as a register has. Compilers vectorise
// loops that go from 16 bits to 32 and back badly, so here is said which instructions do it. The rules are those of
// math/random_rounding.h and math/split_rule.h, to the bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "../math/dtypes.h"
#include "../math/random_rounding.h"
#include "../math/split_rule.h"
#include "../math/update_rule.h"

#if defined(__AVX512BW__) || (defined(__AVX2__) && defined(__F16C__))
#define SFPLUS_LANES
#include <immintrin.h>
#endif

namespace sfplus {
inline namespace SFPLUS_ISA {

// How values of type V, a float or a vector of them, are read and written.
template <class V>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int kCount = 1;
  using Word = std::uint32_t;

  static SFPLUS_INLINE Word indices(std::uint32_t first) { return first; }

  template <class Stored>
  static SFPLUS_INLINE float read(const Stored* from) {
    return widen<float>(load(from));
  }
  template <class Lower>
  static SFPLUS_INLINE float read_split(const bfloat16* upper, const Lower* lower) {
    return join({load(upper), lower_half(load(lower))});
  }
  static SFPLUS_INLINE void write(float* to, float x) { store(to, x); }
  static SFPLUS_INLINE void write_nearest(bfloat16* to, float x) { store(to, narrow<bfloat16>(x)); }
  static SFPLUS_INLINE void write_at_random(float16* to, float x, Word part) {
    store(to, float16_at_random(x, part));
  }
  static SFPLUS_INLINE void write_split(bfloat16* upper, std::uint16_t* lower, float y) {
    const SplitFloat parts = split(y);
    store(upper, parts.upper);
    store(lower, parts.lower);
  }
  // The same for a block, of which settle_nans was called: the words that are stored, and all of them to memory.
  template <int count, class... Arrays>
  static SFPLUS_INLINE void settle_nans(Arrays...) {}  // the rules of math/ look at each number
  static SFPLUS_INLINE Word nearest(float x) { return narrow<bfloat16>(x).bits; }
  static SFPLUS_INLINE Word at_random(float x, Word word) { return bfloat16_at_random(x, word).bits; }
  static SFPLUS_INLINE Word upper_half(float y) { return split(y).upper.bits; }
  static SFPLUS_INLINE Word lower_half_of(float y) { return split(y).lower; }
  template <int count>
  static SFPLUS_INLINE void write_words(void* to, const Word* words) {
    std::uint16_t* halves = static_cast<std::uint16_t*>(to);
    for (int n = 0; n < count; ++n) halves[n] = static_cast<std::uint16_t>(words[n]);
  }
  // y after the parameter was x: see split_y_of_x.
  template <class Lower>
  static SFPLUS_INLINE void write_y_of_x(bfloat16* param, Lower* lower, const bfloat16* upper, float by_e) {
    const SplitFloat parts = split_y_of_x<Lower>({load(upper), lower_half(load(lower))}, by_e, load(param));
    store(param, parts.upper);
    store(lower, static_cast<Lower>(parts.lower >> (sizeof(Lower) == 1 ? 8 : 0)));
  }
  static SFPLUS_INLINE float magnitude(float x) { return x < 0 ? -x : x; }
  static SFPLUS_INLINE float lane(const float* vectors, int i) { return vectors[i]; }
};

#ifndef SFPLUS_LANES

using Widest = float;

#else

#ifdef __AVX512BW__
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef std::uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * kWidth)));

using Widest = Floats;

template <>
struct Root<Floats> {
  static SFPLUS_INLINE Floats of(Floats x) {
#ifdef __AVX512BW__
    return (Floats)_mm512_sqrt_ps((__m512)x);
#else
    return (Floats)_mm256_sqrt_ps((__m256)x);
#endif
  }
};

template <>
struct Lanes<Floats> {
  static constexpr int kCount = kWidth;
  using Word = Words;

  static SFPLUS_INLINE Words indices(std::uint32_t first) {
#ifdef __AVX512BW__
    const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
    const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7};
#endif
    return lanes + first;
  }

  static SFPLUS_INLINE Floats read(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  static SFPLUS_INLINE Floats read(const bfloat16* from) { return (Floats)(words_of(from) << 16); }
  static SFPLUS_INLINE Floats read(const float16* from) {
#ifdef __AVX512BW__
    return (Floats)_mm512_cvtph_ps(shorts_of(from));
#else
    return (Floats)_mm256_cvtph_ps(shorts_of(from));
#endif
  }
  template <class Lower>
  static SFPLUS_INLINE Floats read_split(const bfloat16* upper, const Lower* lower) {
    const Words high = words_of(upper) << 16;
    const Ints low = signed_of(lower);
#ifdef __AVX512BW__
    const Ints not_negative = (Ints)_mm512_max_epi32((__m512i)low, __m512i{});
#else
    const Ints not_negative = (Ints)_mm256_max_epi32((__m256i)low, __m256i{});
#endif
    return (Floats)(high + (Words)((high << 1) == 0 ? not_negative : low));
  }

  static SFPLUS_INLINE void write(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
  static SFPLUS_INLINE void write_nearest(bfloat16* to, Floats x) {
    write_words(to, nearest_bfloat16(x));
  }
  static SFPLUS_INLINE void write_at_random(float16* to, Floats x, Words part) {
    // of a NaN the NaN: these instructions take their second operand then
#ifdef __AVX512BW__
    const Floats held = (Floats)_mm512_min_ps(_mm512_set1_ps(kLargestFloat16), (__m512)magnitude(x));
#else
    const Floats held = (Floats)_mm256_min_ps(_mm256_set1_ps(kLargestFloat16), (__m256)magnitude(x));
#endif
    const Halves halves = cut_to_float16(held, part, (Words)x & ~kMagnitude);
    std::memcpy(to, &halves, sizeof halves);
  }
  static SFPLUS_INLINE void write_split(bfloat16* upper, std::uint16_t* lower, Floats y) {
    const Words bits = split_bits(y);
    write_words(upper, (bits + 0x8000u) >> 16);
    write_lower(lower, bits);
  }
  // A NaN in an array becomes the one that is stored, so that nothing below need look for it. There is hardly ever one:
  // where a selection takes three instructions, one look is for all.
  template <int count, class... Arrays>
  static SFPLUS_INLINE void settle_nans(Arrays... arrays) {
#ifndef __AVX512BW__
    __m256 found = {};
    for (int n = 0; n < count; n += 2) {
      ((found = _mm256_or_ps(found, _mm256_cmp_ps((__m256)arrays[n], (__m256)arrays[n + 1], _CMP_UNORD_Q))), ...);
    }
    if (__builtin_expect(_mm256_movemask_ps(found) == 0, 1)) return;
#endif
    for (int n = 0; n < count; ++n) ((arrays[n] = (Floats)split_bits(arrays[n])), ...);
  }
  static SFPLUS_INLINE Words nearest(Floats x) {
    const Words bits = (Words)x;
    return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  }
  static SFPLUS_INLINE Words at_random(Floats x, Words word) { return ((Words)x + (word >> 16)) >> 16; }
  static SFPLUS_INLINE Words upper_half(Floats y) { return ((Words)y + 0x8000u) >> 16; }
  static SFPLUS_INLINE Words lower_half_of(Floats y) { return (Words)y & 0xFFFFu; }
  template <int count>
  static SFPLUS_INLINE void write_words(void* to, const Words* words) {
    std::uint16_t* halves = static_cast<std::uint16_t*>(to);
#ifdef __AVX512BW__
    for (int n = 0; n < count; ++n) write_words(halves + n * kCount, words[n]);
#else
    for (int n = 0; n < count; n += 2) {  // packing is within halves of a register
      const __m256i packed = _mm256_packus_epi32((__m256i)words[n], (__m256i)words[n + 1]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves + n * kCount), _mm256_permute4x64_epi64(packed, 0xD8));
    }
#endif
  }
  template <class Lower>
  static SFPLUS_INLINE void write_y_of_x(bfloat16* param, Lower* lower, const bfloat16* upper, Floats by_e) {
    const Floats y = read_split(upper, lower);
    const Words now = words_of(param), added = Words{} + (sizeof(Lower) == 1 ? kToNearest24 : 0u);
    const Words written = (split_bits((Floats)(now << 16) + by_e) + added) & (sizeof(Lower) == 1 ? ~0xFFu : ~0u);
    const auto untouched = now == nearest_bfloat16(y - by_e);
    write_words(param, untouched ? words_of(upper) : (written + 0x8000u) >> 16);
    write_lower(lower, untouched ? (Words)signed_of(lower) : written);
  }
  static SFPLUS_INLINE float lane(const Floats* vectors, int i) { return vectors[i / kCount][i % kCount]; }
  static SFPLUS_INLINE Floats magnitude(Floats x) { return (Floats)((Words)x & kMagnitude); }

 protected:
  static SFPLUS_INLINE Halves cut_to_float16(Floats magnitude, Words part, Words sign = Words{}) {
    const Words binade = at_least((Words)magnitude & kInfinity, kLeastNormalFloat16);
    const Floats added = (Floats)(binade | part) - (Floats)binade;
    const Floats raised = (Floats)((Words)(magnitude + added) | sign);
#ifdef __AVX512BW__
    return (Halves)_mm512_cvtps_ph((__m512)raised, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
#else
    return (Halves)_mm256_cvtps_ph((__m256)raised, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
#endif
  }
#ifdef __AVX512BW__
  static SFPLUS_INLINE __m256i shorts_of(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static SFPLUS_INLINE Words words_of(const void* from) { return (Words)_mm512_cvtepu16_epi32(shorts_of(from)); }
  static SFPLUS_INLINE __m128i bytes_of(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  // the lower bits of y, counted from its upper half
  static SFPLUS_INLINE Ints signed_of(const std::uint16_t* lower) {
    return (Ints)_mm512_cvtepi16_epi32(shorts_of(lower));
  }
  static SFPLUS_INLINE Ints signed_of(const std::uint8_t* lower) {
    return (Ints)_mm512_cvtepi8_epi32(bytes_of(lower)) << 8;
  }
#else
  static SFPLUS_INLINE __m128i shorts_of(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
  }
  static SFPLUS_INLINE Words words_of(const void* from) { return (Words)_mm256_cvtepu16_epi32(shorts_of(from)); }
  static SFPLUS_INLINE __m128i bytes_of(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
  // the lower bits of y, counted from its upper half
  static SFPLUS_INLINE Ints signed_of(const std::uint16_t* lower) {
    return (Ints)_mm256_cvtepi16_epi32(shorts_of(lower));
  }
  static SFPLUS_INLINE Ints signed_of(const std::uint8_t* lower) {
    return (Ints)_mm256_cvtepi8_epi32(bytes_of(lower)) << 8;
  }
#endif
  static SFPLUS_INLINE Words split_bits(Floats y) { return y != y ? Words{} + 0x7FC00000u : (Words)y; }
  static SFPLUS_INLINE Words nearest_bfloat16(Floats x) {
    const Words bits = (Words)x;
    return as_bfloat16(x, bits + 0x7FFFu + ((bits >> 16) & 1u));
  }
  static SFPLUS_INLINE Words as_bfloat16(Floats x, Words raised) {
    return x != x ? Words{} + 0x7FC0u : raised >> 16;
  }
  // Words below 2^16.
  static SFPLUS_INLINE void write_words(void* to, Words words) {
#ifdef __AVX512BW__
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)words));
#else
    const __m256i whole = (__m256i)words;
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(static_cast<__m128i*>(to), packed);
#endif
  }
  static SFPLUS_INLINE void write_lower(std::uint16_t* to, Words bits) { write_words(to, bits & 0xFFFFu); }
  static SFPLUS_INLINE void write_lower(std::uint8_t* to, Words bits) { write_bytes(to, (bits >> 8) & 0xFFu); }
  // Words below 2^8.
  static SFPLUS_INLINE void write_bytes(std::uint8_t* to, Words words) {
#ifdef __AVX512BW__
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(0xFFFF, (__m512i)words));
#else
    const __m256i whole = (__m256i)words;
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(packed, packed));
#endif
  }
  static SFPLUS_INLINE Words at_least(Words x, std::uint32_t bound) {
#ifdef __AVX512BW__
    return (Words)_mm512_max_epu32((__m512i)x, _mm512_set1_epi32(static_cast<int>(bound)));
#else
    return (Words)_mm256_max_epu32((__m256i)x, _mm256_set1_epi32(static_cast<int>(bound)));
#endif
  }
};

#endif

}  // namespace SFPLUS_ISA
}  // namespace sfplus
