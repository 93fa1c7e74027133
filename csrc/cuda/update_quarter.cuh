// The update pass over state of 8 bits (Format::QUARTER): as update_half.cuh, with codes in place of the moments. Of a float32
// parameter and gradient 20.1 bytes per element; of a bfloat16 parameter, of which y has 24 bits, with its gradient 16.1.
#pragma once

#include <type_traits>

#include "../math/eight_bits.h"
#include "update_half.cuh"

namespace sfplus {
namespace cuda {

// As kUpdateHalfBlocks; but where 96 registers are one too few for the compiler it has 128, or 168 where those are.
template <Direction direction, class Grad>
constexpr int kUpdateQuarterBlocks =
    kArch < 1000                                                             ? kUpdateHalfBlocks<direction, bfloat16>
    : direction == Direction::SGD                                            ? 5
    : direction == Direction::ADAM && sizeof(Grad) == 4 && kArch >= 1200 ? 3
                                                                             : 4;

// The largest in a block of 32 elements, of which a thread has ``count``. All threads of a block are here together.
template <int count>
__device__ __forceinline__ std::uint32_t largest_of_block(std::uint32_t own, int lane) {
  constexpr int kSharing = kScaledTogether / count;
  const unsigned together = kSharing == kLanes ? 0xFFFFFFFFu : ((1u << (kSharing % 32)) - 1) << (lane & ~(kSharing - 1));
#pragma unroll
  for (int distance = 1; distance < kSharing; distance *= 2) {
    const std::uint32_t other = __shfl_xor_sync(together, own, distance);
    own = own < other ? other : own;
  }
  return own;
}

template <Direction direction, class Param, class Grad>
__device__ __forceinline__ void update_quarter_pass(const Table& table, const Finish& finish) {
  constexpr bool kHasM = keeps_m(direction), kHasV = keeps_v(direction), kHasE = averages(direction);
  constexpr bool kSplit = std::is_same<Param, bfloat16>::value;
  constexpr int n = kHalfPack;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t turn_of_warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  const bool any = turn_of_warp < table.n_chunks;
  const Piece piece = piece_of(table, any ? table.n_chunks - 1 - turn_of_warp : 0);
  const Grad* grad = reinterpret_cast<const Grad*>(table.gradients[piece.row]) + piece.start;
  float* y = kSplit ? nullptr : piece.at<float>(Row::Y);
  std::uint8_t* lower = kSplit ? piece.at<std::uint8_t>(Row::Y) : nullptr;
  bfloat16* upper = kSplit ? piece.at<bfloat16>(Row::PARAM) : nullptr;
  float16* e = kHasE ? piece.at<float16>(Row::DISPLACEMENT) : nullptr;
  std::uint8_t* m = kHasM ? piece.at<std::uint8_t>(Row::EXP_AVG) : nullptr;
  std::uint8_t* v = kHasV ? piece.at<std::uint8_t>(Row::EXP_AVG_SQ) : nullptr;
  std::uint8_t* exponents =
      kHasV ? reinterpret_cast<std::uint8_t*>(piece.columns[Row::EXPONENTS]) + piece.start / kScaledTogether : nullptr;
  const bool vectors = aligned<Grad, n>(grad) && aligned<float, n>(y) && aligned<std::uint8_t, n>(lower) &&
                       aligned<bfloat16, n>(upper) && aligned<float16, n>(e) && aligned<std::uint8_t, n>(m) &&
                       aligned<std::uint8_t, n>(v);

  wait_for_earlier_kernels();
  const Run& run = finish.run;
  if (!any || run.globals[Global::SKIP] != 0) return;
  const std::int64_t slot = piece.columns[Row::SLOT];
  UpdateCoefs<float> coefs =
      update_coefs<float>(run.group_coefs + piece.columns[Row::GROUP] * GroupCoef::WIDTH,
                          run.tensor_coefs + slot * TensorCoef::WIDTH);
  if (kHasM) coefs.beta1 *= kUnitOfM;
  const NoiseKey key = noise_key(run.settings, run.tensors, slot);

  DriftSums<float, false> drift;
  share_out<n, 1>(piece.numel, vectors, lane, [&](auto count, auto, int at) {
    constexpr int kCount = decltype(count)::value;
    using Codes = Pack<std::uint8_t, kCount>;
    using Halves = Pack<bfloat16, kCount>;
    Codes m_pack = {}, v_pack = {}, lower_pack;
    Halves upper_pack;
    Pack<float, kCount> y_pack;
    const auto g_pack = Pack<Grad, kCount>::template read<Cache::STREAM>(grad + at);
    if constexpr (kHasM) m_pack = Codes::template read<Cache::STREAM>(m + at);
    if constexpr (kHasV) v_pack = Codes::template read<Cache::STREAM>(v + at);
    Pack<float16, kCount> e_pack = {};
    if constexpr (kHasE) e_pack = Pack<float16, kCount>::template read<Cache::STREAM>(e + at);
    if constexpr (kSplit) {
      lower_pack = Codes::template read<Cache::STREAM>(lower + at);
      upper_pack = Halves::template read<Cache::STREAM>(upper + at);
    } else {
      y_pack = Pack<float, kCount>::template read<Cache::STREAM>(y + at);
    }
    std::uint8_t* exponent = exponents + at / kScaledTogether;
    std::uint32_t lowest = 0, most = 0;
    if constexpr (kHasV) lowest = 8u * Pack<std::uint8_t, 1>::template read<Cache::STREAM>(exponent).elements[0];
    WholeIndex index(piece.columns, piece.start + at);
    // until the block's exponent is known
    float new_m[kCount];
    std::uint32_t ranks[kCount], words[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float m_i = 0, v_i = 0, e_i = widen<float>(e_pack.elements[i]), y_i;
      if constexpr (kHasV) {
        const std::uint32_t rank = rank_of_code(v_pack.elements[i], lowest);
        v_i = float_of_rank(rank);
        if constexpr (kHasM) m_i = exp_avg_of_code(m_pack.elements[i], rank);
      }
      if constexpr (kSplit) {
        y_i = join({upper_pack.elements[i], lower_half(lower_pack.elements[i])});
      } else {
        y_i = y_pack.elements[i];
      }
      const float before = y_i;
      update_element<direction>(widen<float>(g_pack.elements[i]), m_i, v_i, y_i, e_i, coefs);
      const std::uint32_t word = random_word(key, index.next());
      if constexpr (kHasE) e_pack.elements[i] = float16_at_random(e_i, part_of_e(word));
      if constexpr (kSplit) {
        y_i = to_24_bits(y_i, part_of_y(word));
        const SplitFloat parts = split_bits(bits_of(y_i));
        upper_pack.elements[i] = parts.upper;
        lower_pack.elements[i] = static_cast<std::uint8_t>(parts.lower >> 8);
      } else {
        y_pack.elements[i] = y_i;
      }
      drift.add(table, before, y_i, widen<float>(g_pack.elements[i]));
      if constexpr (kHasV) {
        ranks[i] = rank_at_random(v_i, word);
        most = most < ranks[i] ? ranks[i] : most;
      }
      new_m[i] = m_i;
      words[i] = word;
    }
    if constexpr (kHasE) e_pack.template write<Cache::STREAM>(e + at);
    // what the forward pass reads is worth keeping
    if constexpr (kSplit) {
      lower_pack.template write<Cache::STREAM>(lower + at);
      upper_pack.template write<Cache::KEEP>(upper + at);
    } else {
      y_pack.template write<Cache::KEEP>(y + at);
    }
    if constexpr (kHasV) {
      lowest = lowest_rank(largest_of_block<kCount>(most, lane));
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::uint32_t rank = stored_rank(ranks[i], lowest);
        v_pack.elements[i] = code_of_rank(rank, lowest);
        if constexpr (kHasM) m_pack.elements[i] = code_of_exp_avg(new_m[i], rank, words[i]);
      }
      v_pack.template write<Cache::STREAM>(v + at);
      if constexpr (kHasM) m_pack.template write<Cache::STREAM>(m + at);
      if (at % kScaledTogether == 0) {
        Pack<std::uint8_t, 1>{{static_cast<std::uint8_t>(lowest >> 3)}}.template write<Cache::STREAM>(exponent);
      }
    }
  });
  drift.write(table, table.n_chunks - 1 - turn_of_warp, lane);
}

}  // namespace cuda
}  // namespace sfplus
