// The update pass over state of 16 bits (Format::HALF): as update.cuh, with 8 elements in 16 bytes of state. Of a float32
// parameter and gradient 24 bytes per element; a bfloat16 parameter is half of y, and with its gradient it is 22.
#pragma once

#include <type_traits>

#include "../math/random_rounding.h"
#include "../math/split_rule.h"
#include "../math/update_rule.h"
#include "drift.cuh"
#include "finish.h"
#include "order.cuh"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

constexpr int kHalfPack = 8;  // elements that a thread takes at once: 16 bytes of state

// Where neighbouring elements of this memory are in the whole tensor, modulo 2^32: runs of it, see Row in layout.py. One
// division for a pack, and none where the tensor is whole.
struct WholeIndex {
  std::uint32_t index, jump;  // from the end of a run to the next one
  int left, run;              // elements of this run; so many that it never ends where there is but one

  __device__ __forceinline__ WholeIndex(const std::int64_t* columns, std::int64_t element) {
    const std::int64_t length = columns[Row::INDEX_RUN];
    std::int64_t start = columns[Row::INDEX_START], within = element;
    left = run = 0x7FFFFFFF;
    jump = 0;
    if (length != columns[Row::NUMEL]) {
      within = element % length;
      start += element / length * columns[Row::INDEX_STRIDE];
      run = static_cast<int>(length);
      left = run - static_cast<int>(within);
      jump = static_cast<std::uint32_t>(columns[Row::INDEX_STRIDE] - length);
    }
    index = static_cast<std::uint32_t>(start + within);
  }
  __device__ __forceinline__ std::uint32_t next() {
    const std::uint32_t now = index++;
    if (--left == 0) {
      index += jump;
      left = run;
    }
    return now;
  }
};

// As kUpdateBlocks: 128 registers where there are two moments and e, 96 where there is one of them, else 64.
template <Direction direction, class Grad>
constexpr int kUpdateHalfBlocks =
    direction == Direction::ADAM                                                              ? 4
    : direction == Direction::ADAM_NO_MOMENTUM && kArch >= (sizeof(Grad) == 4 ? 1000 : 1200) ? 4
    : direction == Direction::PLAIN_ADAM && sizeof(Grad) == 4 && kArch >= 1200               ? 4
    : keeps_v(direction) || averages(direction)                                               ? 5
                                                                                              : 8;

template <Direction direction, class Param, class Grad>
__device__ __forceinline__ void update_half_pass(const Table& table, const Finish& finish) {
  constexpr bool kHasM = keeps_m(direction), kHasV = keeps_v(direction), kHasE = averages(direction);
  constexpr bool kSplit = std::is_same<Param, bfloat16>::value;
  constexpr int n = kHalfPack;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t turn_of_warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  const bool any = turn_of_warp < table.n_chunks;
  const Piece piece = piece_of(table, any ? table.n_chunks - 1 - turn_of_warp : 0);
  const Grad* grad = reinterpret_cast<const Grad*>(table.gradients[piece.row]) + piece.start;
  float* y = kSplit ? nullptr : piece.at<float>(Row::Y);
  std::uint16_t* lower = kSplit ? piece.at<std::uint16_t>(Row::Y) : nullptr;
  bfloat16* upper = kSplit ? piece.at<bfloat16>(Row::PARAM) : nullptr;
  float16* e = kHasE ? piece.at<float16>(Row::DISPLACEMENT) : nullptr;
  bfloat16* m = kHasM ? piece.at<bfloat16>(Row::EXP_AVG) : nullptr;
  bfloat16* v = kHasV ? piece.at<bfloat16>(Row::EXP_AVG_SQ) : nullptr;
  const bool vectors = aligned<Grad, n>(grad) && aligned<float, n>(y) && aligned<std::uint16_t, n>(lower) &&
                       aligned<bfloat16, n>(upper) && aligned<float16, n>(e) && aligned<bfloat16, n>(m) &&
                       aligned<bfloat16, n>(v);

  wait_for_earlier_kernels();
  const Run& run = finish.run;
  if (!any || run.globals[Global::SKIP] != 0) return;
  const std::int64_t slot = piece.columns[Row::SLOT];
  const UpdateCoefs<float> coefs =
      update_coefs<float>(run.group_coefs + piece.columns[Row::GROUP] * GroupCoef::WIDTH,
                          run.tensor_coefs + slot * TensorCoef::WIDTH);
  const NoiseKey key = noise_key(run.settings, run.tensors, slot);

  DriftSums<float, false> drift;
  share_out<n, 1>(piece.numel, vectors, lane, [&](auto count, auto, int at) {
    constexpr int kCount = decltype(count)::value;
    using Halves = Pack<bfloat16, kCount>;
    Halves m_pack = {}, v_pack = {}, upper_pack;
    Pack<std::uint16_t, kCount> lower_pack;
    Pack<float, kCount> y_pack;
    const auto g_pack = Pack<Grad, kCount>::template read<Cache::STREAM>(grad + at);
    if constexpr (kHasM) m_pack = Halves::template read<Cache::STREAM>(m + at);
    if constexpr (kHasV) v_pack = Halves::template read<Cache::STREAM>(v + at);
    Pack<float16, kCount> e_pack = {};
    if constexpr (kHasE) e_pack = Pack<float16, kCount>::template read<Cache::STREAM>(e + at);
    if constexpr (kSplit) {
      lower_pack = Pack<std::uint16_t, kCount>::template read<Cache::STREAM>(lower + at);
      upper_pack = Halves::template read<Cache::STREAM>(upper + at);
    } else {
      y_pack = Pack<float, kCount>::template read<Cache::STREAM>(y + at);
    }
    WholeIndex index(piece.columns, piece.start + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float m_i = widen<float>(m_pack.elements[i]), v_i = widen<float>(v_pack.elements[i]);
      float e_i = widen<float>(e_pack.elements[i]), y_i;
      if constexpr (kSplit) {
        y_i = join({upper_pack.elements[i], lower_pack.elements[i]});
      } else {
        y_i = y_pack.elements[i];
      }
      const float before = y_i;
      update_element<direction>(widen<float>(g_pack.elements[i]), m_i, v_i, y_i, e_i, coefs);
      drift.add(table, before, y_i, widen<float>(g_pack.elements[i]));
      const std::uint32_t word = random_word(key, index.next());
      if constexpr (kHasM) m_pack.elements[i] = narrow<bfloat16>(m_i);
      if constexpr (kHasV) v_pack.elements[i] = bfloat16_at_random(v_i, word);
      if constexpr (kHasE) e_pack.elements[i] = float16_at_random(e_i, part_of_float16(word));
      if constexpr (kSplit) {
        const SplitFloat parts = split(y_i);
        upper_pack.elements[i] = parts.upper;
        lower_pack.elements[i] = parts.lower;
      } else {
        y_pack.elements[i] = y_i;
      }
    }
    if constexpr (kHasM) m_pack.template write<Cache::STREAM>(m + at);
    if constexpr (kHasV) v_pack.template write<Cache::STREAM>(v + at);
    if constexpr (kHasE) e_pack.template write<Cache::STREAM>(e + at);
    // what the forward pass reads is worth keeping
    if constexpr (kSplit) {
      lower_pack.template write<Cache::STREAM>(lower + at);
      upper_pack.template write<Cache::KEEP>(upper + at);
    } else {
      y_pack.template write<Cache::KEEP>(y + at);
    }
  });
  drift.write(table, table.n_chunks - 1 - turn_of_warp, lane);
}

}  // namespace cuda
}  // namespace sfplus
