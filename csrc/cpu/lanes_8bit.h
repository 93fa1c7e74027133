// Moments as math/eight_bits.h keeps them: one at a time, or as many at once as a register has.
#pragma once

#include <cstdint>
#include <cstring>

#include "../math/eight_bits.h"
#include "lanes.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

template <class V>
struct ByteLanes;

template <>
struct ByteLanes<float> : Lanes<float> {
  using Code = std::uint8_t;  // of m

  // v's ranks. ``lowest`` is the block's.
  static SFPLUS_INLINE Word read_ranks(const std::uint8_t* codes, std::uint32_t lowest) {
    return rank_of_code(*codes, lowest);
  }
  static SFPLUS_INLINE float values(Word ranks) { return float_of_rank(ranks); }
  // 0 for 0 alone.
  static SFPLUS_INLINE Word positive(float v) { return at_most(bits_of(v), 1); }
  static SFPLUS_INLINE Word ranks_at_random(float v, Word word) { return rank_at_random(v, word); }
  static SFPLUS_INLINE Word at_least(Word ranks, std::uint32_t bound) { return ranks < bound ? bound : ranks; }
  static SFPLUS_INLINE Word at_most(Word ranks, std::uint32_t bound) { return ranks > bound ? bound : ranks; }
  static SFPLUS_INLINE Word zero_where_zero(Word positive, Word x) { return positive == 0 ? 0 : x; }
  static SFPLUS_INLINE Word larger(Word a, Word b) { return a < b ? b : a; }
  static SFPLUS_INLINE std::uint32_t largest(Word ranks) { return ranks; }

  // m of a block in units of the root of v, and that root.
  static SFPLUS_INLINE void read_units(const std::uint8_t* codes, float* units) {
    for (int i = 0; i < kScaledTogether; ++i) units[i] = unit_of_code(codes[i]);
  }
  static SFPLUS_INLINE float root(Word ranks, float) { return root_of_rank(ranks); }
  static SFPLUS_INLINE Code codes_of_exp_avg(float m, Word ranks, Word positive, Word word) {
    return code_of_exp_avg(m, zero_where_zero(positive, ranks), word);
  }
  // The bits of y before those below the 24th are dropped; then what the parameter has of them, and what is beside it.
  static SFPLUS_INLINE Word raised(float y, Word added) { return bits_or_nan(y) + added; }
  static SFPLUS_INLINE Word upper_of_24_bits(Word bits) { return split_bits(bits & ~0xFFu).upper.bits; }
  static SFPLUS_INLINE Word lower_of_24_bits(Word bits) { return (bits >> 8) & 0xFFu; }
  // Bytes of a block.
  template <class Byte>
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Byte* bytes) {
    for (int i = 0; i < kScaledTogether; ++i) to[i] = static_cast<std::uint8_t>(bytes[i]);
  }
};

#ifdef SFPLUS_LANES

// As in root_of_rank and inverse_unit_of_m, with the part of the exponent that all have and what the lowest 4 bits of a
// rank, shifted to the exponent with the others, have too much.
struct alignas(64) Table {
  std::uint32_t entries[16];
  constexpr Table(const std::uint32_t (&roots)[16], std::uint32_t bias, std::uint32_t shifted) : entries() {
    for (std::uint32_t i = 0; i < 16; ++i) entries[i] = roots[i] + bias + shifted * i;
  }
};
constexpr Table kRootsInMemory(kRoots, 0u - kHalvedBias, 0u - (1u << 19));
constexpr Table kInverseUnits(kInverseRoots, kHalvedBias - (3u << 23), 1u << 19);

template <>
struct ByteLanes<Floats> : Lanes<Floats> {
  struct Code {  // of m, as it is not yet packed: a float16 that is not negative, and what has the sign
    Halves magnitude;
    Words signed_;
  };

  static SFPLUS_INLINE Words read_ranks(const std::uint8_t* codes, std::uint32_t lowest) {
    const Words words = widened(codes);
    return zero_where_zero(words, words + lowest);
  }
  static SFPLUS_INLINE Floats values(Words ranks) { return (Floats)(ranks << 20); }
  static SFPLUS_INLINE Words positive(Floats v) { return at_most((Words)v, 1u); }
  // Of what is positive it may be 0, and of what is not finite above kLargestRank.
  static SFPLUS_INLINE Words ranks_at_random(Floats v, Words word) { return ((Words)v + part_of_v(word)) >> 20; }

  static SFPLUS_INLINE void read_units(const std::uint8_t* codes, Floats* units) {
#ifdef __AVX512BW__
    for (int n = 0; n < kScaledTogether / kCount; ++n) {
      const __m256i bytes = _mm256_cvtepi8_epi16(bytes_of(codes + n * kCount));
      units[n] = (Floats)_mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(bytes, 7), _mm256_set1_epi16(-0x4001)));
    }
#else
    for (int n = 0; n < kScaledTogether / kCount; n += 2) {
      const __m256i bytes = _mm256_cvtepi8_epi16(shorts_of(codes + n * kCount));
      const __m256i halves = _mm256_and_si256(_mm256_slli_epi16(bytes, 7), _mm256_set1_epi16(-0x4001));
      units[n] = (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(halves));
      units[n + 1] = (Floats)_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    }
#endif
  }
  static SFPLUS_INLINE Floats root(Words ranks, Floats v) {
#ifdef __AVX512BW__
    static_cast<void>(v);
    return (Floats)(from_table(kRootsInMemory.entries, ranks) + (ranks << 19));
#else
    static_cast<void>(ranks);
    return Root<Floats>::of(v);  // 16 entries are two registers here
#endif
  }
  static SFPLUS_INLINE Code codes_of_exp_avg(Floats m, Words ranks, Words positive, Words word) {
    const Words inverse = from_table(kInverseUnits.entries, ranks) - (ranks << 19);
    const Words x = zero_where_zero(positive, (Words)(m * (Floats)inverse));
    // of a NaN the bound: these instructions take their second operand then
#ifdef __AVX512BW__
    const Floats held = (Floats)_mm512_min_ps((__m512)magnitude((Floats)x), _mm512_set1_ps(kLargestCodeOfM));
#else
    const Floats held = (Floats)_mm256_min_ps((__m256)magnitude((Floats)x), _mm256_set1_ps(kLargestCodeOfM));
#endif
    return {cut_to_float16(held, part_of_m(word)), x};
  }
  // Of y that settle_nans has seen.
  static SFPLUS_INLINE Words upper_of_24_bits(Words bits) { return ((bits & ~0xFFu) + 0x8000u) >> 16; }
  static SFPLUS_INLINE Words lower_of_24_bits(Words bits) { return (bits >> 8) & 0xFFu; }
  static SFPLUS_INLINE Words raised(Floats y, Words added) { return (Words)y + added; }
#ifdef __AVX512BW__
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Words* words) {
    for (int n = 0; n < kScaledTogether / kCount; ++n) write_bytes(to + n * kCount, words[n]);
  }
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Code* codes) {
    for (int n = 0; n < kScaledTogether / kCount; ++n) {
      const __m128i bytes = _mm256_cvtepi16_epi8((__m256i)(codes[n].magnitude >> 7));
      const __m128i sign = _mm_maskz_set1_epi8(_mm512_movepi32_mask((__m512i)codes[n].signed_), -0x80);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + n * kCount), _mm_or_si128(bytes, sign));
    }
  }
#else
  // Packing is within halves of a register.
  static SFPLUS_INLINE __m256i in_order(__m256i bytes) {
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Words* words) {
    const __m256i first = _mm256_packus_epi32((__m256i)words[0], (__m256i)words[1]);
    const __m256i second = _mm256_packus_epi32((__m256i)words[2], (__m256i)words[3]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), in_order(_mm256_packus_epi16(first, second)));
  }
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Code* codes) {
    const __m256i first = seven_bits(codes[0], codes[1]), second = seven_bits(codes[2], codes[3]);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xD8);
    const __m256i signs = in_order(_mm256_packs_epi16(sign_of(codes[0], codes[1]), sign_of(codes[2], codes[3])));
    const __m256i both = _mm256_or_si256(bytes, _mm256_and_si256(signs, _mm256_set1_epi8(-0x80)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), both);
  }
  static SFPLUS_INLINE __m256i seven_bits(const Code& a, const Code& b) {
    return _mm256_srli_epi16(_mm256_set_m128i((__m128i)b.magnitude, (__m128i)a.magnitude), 7);
  }
  static SFPLUS_INLINE __m256i sign_of(const Code& a, const Code& b) {
    return _mm256_packs_epi32((__m256i)a.signed_, (__m256i)b.signed_);
  }
#endif

  static SFPLUS_INLINE Words larger(Words a, Words b) {
#ifdef __AVX512BW__
    return (Words)_mm512_max_epu32((__m512i)a, (__m512i)b);
#else
    return (Words)_mm256_max_epu32((__m256i)a, (__m256i)b);
#endif
  }
  static SFPLUS_INLINE std::uint32_t largest(Words ranks) {
#ifdef __AVX512BW__
    return _mm512_reduce_max_epu32((__m512i)ranks);
#else
    const __m256i whole = (__m256i)ranks;
    __m128i found = _mm_max_epu32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    found = _mm_max_epu32(found, _mm_shuffle_epi32(found, 0x4E));
    found = _mm_max_epu32(found, _mm_shuffle_epi32(found, 0xB1));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(found));
#endif
  }
  static SFPLUS_INLINE Words at_least(Words x, std::uint32_t bound) { return Lanes<Floats>::at_least(x, bound); }
  static SFPLUS_INLINE Words at_most(Words x, std::uint32_t bound) {
#ifdef __AVX512BW__
    return (Words)_mm512_min_epu32((__m512i)x, _mm512_set1_epi32(static_cast<int>(bound)));
#else
    return (Words)_mm256_min_epu32((__m256i)x, _mm256_set1_epi32(static_cast<int>(bound)));
#endif
  }
  static SFPLUS_INLINE Words zero_where_zero(Words ranks, Words x) {
#ifdef __AVX512BW__
    return (Words)_mm512_maskz_mov_epi32(_mm512_test_epi32_mask((__m512i)ranks, (__m512i)ranks), (__m512i)x);
#else
    return (Words)_mm256_sign_epi32((__m256i)x, (__m256i)ranks);  // which are no more than 2^31
#endif
  }

 private:
  static SFPLUS_INLINE Words widened(const std::uint8_t* bytes) {
#ifdef __AVX512BW__
    return (Words)_mm512_cvtepu8_epi32(bytes_of(bytes));
#else
    return (Words)_mm256_cvtepu8_epi32(bytes_of(bytes));
#endif
  }
  // Of 16 entries, by the lowest 4 bits.
  static SFPLUS_INLINE Words from_table(const std::uint32_t* table, Words ranks) {
#ifdef __AVX512BW__
    return (Words)_mm512_permutexvar_epi32((__m512i)ranks, _mm512_load_si512(table));
#else
    const __m256i* halves = reinterpret_cast<const __m256i*>(table);
    const __m256 lower = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(_mm256_load_si256(halves), (__m256i)ranks));
    const __m256 upper = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(_mm256_load_si256(halves + 1), (__m256i)ranks));
    return (Words)_mm256_blendv_ps(lower, upper, (__m256)(ranks << 28));
#endif
  }
};

#endif

}  // namespace SFPLUS_ISA
}  // namespace sfplus
