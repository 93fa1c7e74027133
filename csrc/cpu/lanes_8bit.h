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
  static SFPLUS_INLINE Word ranks_at_random(float v, Word word) { return rank_at_random(v, word); }
  static SFPLUS_INLINE Word stored_ranks(Word ranks, std::uint32_t lowest) { return stored_rank(ranks, lowest); }
  static SFPLUS_INLINE Word codes(Word ranks, std::uint32_t lowest) { return code_of_rank(ranks, lowest); }
  static SFPLUS_INLINE float values(Word ranks) { return float_of_rank(ranks); }
  static SFPLUS_INLINE Word larger(Word a, Word b) { return a < b ? b : a; }
  static SFPLUS_INLINE std::uint32_t largest(Word ranks) { return ranks; }

  static SFPLUS_INLINE float read_exp_avg(const std::uint8_t* codes, Word ranks) {
    return exp_avg_of_code(*codes, ranks);
  }
  static SFPLUS_INLINE Code codes_of_exp_avg(float m, Word ranks, Word word) {
    return code_of_exp_avg(m, ranks, word);
  }
  // Returns what goes beside the parameter.
  static SFPLUS_INLINE Word write_upper(bfloat16* upper, float y, Word added) {
    const SplitFloat parts = split_to_24_bits(y, added);
    store(upper, parts.upper);
    return parts.lower >> 8;
  }
  // Bytes of a block.
  template <class Byte>
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Byte* bytes) {
    for (int i = 0; i < kScaledTogether; ++i) to[i] = static_cast<std::uint8_t>(bytes[i]);
  }
};

#ifdef SFPLUS_LANES

alignas(64) constexpr std::uint32_t kRootsInMemory[] = {SFPLUS_ROOTS};
alignas(64) constexpr std::uint32_t kInverseRootsInMemory[] = {SFPLUS_INVERSE_ROOTS};

template <>
struct ByteLanes<Floats> : Lanes<Floats> {
  using Code = Halves;  // of m, as it is not yet packed

  static SFPLUS_INLINE Words read_ranks(const std::uint8_t* codes, std::uint32_t lowest) {
    const Words words = widened(codes);
    return zero_where_zero(words, words + lowest);
  }
  static SFPLUS_INLINE Words ranks_at_random(Floats v, Words word) {
    const Words bits = (Words)v, ranks = at_most((bits + part_of_v(word)) >> 20, kLargestRank);
    return larger(ranks, at_most(bits, 1u));
  }
  static SFPLUS_INLINE Words stored_ranks(Words ranks, std::uint32_t lowest) {
    return zero_where_zero(ranks, at_least(ranks, lowest + 1));
  }
  static SFPLUS_INLINE Words codes(Words ranks, std::uint32_t lowest) {
    return zero_where_zero(ranks, ranks - lowest);
  }
  static SFPLUS_INLINE Floats values(Words ranks) { return (Floats)(ranks << 20); }

  static SFPLUS_INLINE Floats read_exp_avg(const std::uint8_t* codes, Words ranks) {
#ifdef __AVX512BW__
    const Floats root = (Floats)(from_table(kRootsInMemory, ranks) + ((ranks >> 4) << 23) - kHalvedBias);
    const Halves bytes = (Halves)_mm256_cvtepi8_epi16(bytes_of(codes));
    return (Floats)_mm512_cvtph_ps((__m256i)((bytes << 7) & 0xBFFF)) * root;
#else
    const Floats root = Root<Floats>::of(values(ranks));  // 16 entries are two registers here
    const Halves bytes = (Halves)_mm_cvtepi8_epi16(bytes_of(codes));
    return (Floats)_mm256_cvtph_ps((__m128i)((bytes << 7) & 0xBFFF)) * root;
#endif
  }
  static SFPLUS_INLINE Code codes_of_exp_avg(Floats m, Words ranks, Words word) {
    const Words inverse = from_table(kInverseRootsInMemory, ranks) - ((ranks >> 4) << 23) + (kHalvedBias - (3u << 23));
    const Words x = zero_where_zero(ranks, (Words)(m * (Floats)inverse));
    // of a NaN the bound: these instructions take their second operand then
#ifdef __AVX512BW__
    const Floats held = (Floats)_mm512_min_ps((__m512)magnitude((Floats)x), _mm512_set1_ps(kLargestCodeOfM));
#else
    const Floats held = (Floats)_mm256_min_ps((__m256)magnitude((Floats)x), _mm256_set1_ps(kLargestCodeOfM));
#endif
    return cut_to_float16(held, x & ~kMagnitude, part_of_m(word));
  }
  static SFPLUS_INLINE Words write_upper(bfloat16* upper, Floats y, Words added) {
    const Words bits = split_bits(y) + added;
    write_words(upper, ((bits & ~0xFFu) + 0x8000u) >> 16);
    return (bits >> 8) & 0xFFu;
  }
#ifdef __AVX512BW__
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Words* words) {
    for (int n = 0; n < kScaledTogether / kCount; ++n) write_bytes(to + n * kCount, words[n]);
  }
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Halves* halves) {
    for (int n = 0; n < kScaledTogether / kCount; ++n) {
      const __m256i bytes = (__m256i)(((halves[n] << 1) | (halves[n] & 0x8000)) >> 8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + n * kCount), _mm256_maskz_cvtepi16_epi8(0xFFFF, bytes));
    }
  }
#else
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Words* words) {
    const __m256i first = _mm256_packus_epi32((__m256i)words[0], (__m256i)words[1]);
    const __m256i second = _mm256_packus_epi32((__m256i)words[2], (__m256i)words[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing is within halves of a register
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
  }
  static SFPLUS_INLINE void write_block(std::uint8_t* to, const Halves* halves) {
    const __m256i first = upper_bytes(halves[0], halves[1]), second = upper_bytes(halves[2], halves[3]);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
  }
  static SFPLUS_INLINE __m256i upper_bytes(Halves a, Halves b) {
    typedef std::uint16_t Both __attribute__((vector_size(32)));
    const Both both = (Both)_mm256_set_m128i((__m128i)b, (__m128i)a);
    return (__m256i)(((both << 1) | (both & 0x8000)) >> 8);
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

 private:
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
    return (Words)_mm256_andnot_si256((__m256i)(ranks == 0), (__m256i)x);
#endif
  }
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
