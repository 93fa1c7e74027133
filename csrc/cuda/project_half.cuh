// The pass of project.cuh over state of 16 bits and of 8: z is what is stored, and y and e are rounded once more.
#pragma once

#include <type_traits>

#include "../math/eight_bits.h"
#include "../math/project_rule.h"
#include "../math/split_rule.h"
#include "project.cuh"
#include "update_half.cuh"

namespace sfplus {
namespace cuda {

template <int format, bool averages, class Param>
__device__ __forceinline__ void project_half_pass(const Table& table, const Run& run) {
  constexpr bool kSplit = std::is_same<Param, bfloat16>::value, kQuarter = format == Format::QUARTER;
  using Lower = typename std::conditional<kQuarter, std::uint8_t, std::uint16_t>::type;
  constexpr int n = kHalfPack;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= table.n_chunks || run.globals[Global::SKIP] != 0) return;  // all of a warp alike
  const Piece piece = piece_of(table, index);
  const std::int64_t group = piece.columns[Row::GROUP];
  const ProjectCoefs<float> coefs =
      project_coefs<float>(run.groups + group * Group::WIDTH, run.group_coefs + group * GroupCoef::WIDTH);
  const NoiseKey key = noise_key(run.settings, run.tensors, piece.columns[Row::SLOT]);
  float* y = kSplit ? nullptr : piece.at<float>(Row::Y);
  Lower* lower = kSplit ? piece.at<Lower>(Row::Y) : nullptr;
  bfloat16* upper = kSplit ? piece.at<bfloat16>(Row::PARAM) : nullptr;
  float16* e = averages ? piece.at<float16>(Row::DISPLACEMENT) : nullptr;
  const bool vectors = aligned<float, n>(y) && aligned<Lower, n>(lower) && aligned<bfloat16, n>(upper) &&
                       aligned<float16, n>(e);

  // body(offset, y, e) for what a thread takes at once, as it is stored
  const auto sweep = [&](const auto& body) {
    share_out<n, 1>(piece.numel, vectors, lane, [&](auto count, auto, int at) {
      constexpr int kCount = decltype(count)::value;
      Pack<float, kCount> y_pack, e_values = {};
      if constexpr (kSplit) {
        const auto high = Pack<bfloat16, kCount>::template read<Cache::STREAM>(upper + at);
        const auto low = Pack<Lower, kCount>::template read<Cache::STREAM>(lower + at);
#pragma unroll
        for (int i = 0; i < kCount; ++i) y_pack.elements[i] = join({high.elements[i], lower_half(low.elements[i])});
      } else {
        y_pack = Pack<float, kCount>::template read<Cache::STREAM>(y + at);
      }
      if constexpr (averages) {
        const auto e_pack = Pack<float16, kCount>::template read<Cache::STREAM>(e + at);
#pragma unroll
        for (int i = 0; i < kCount; ++i) e_values.elements[i] = widen<float>(e_pack.elements[i]);
      }
      body(count, at, y_pack, e_values);
    });
  };

  double squares = 0;
  sweep([&](auto count, int, const auto& y_pack, const auto& e_values) {
#pragma unroll
    for (int i = 0; i < decltype(count)::value; ++i) {
      const double z = static_cast<double>(z_of<averages>(y_pack.elements[i], e_values.elements[i], coefs));
      squares += z * z;
    }
  });
  const float excess = static_cast<float>(
      excess_of_row(sum_of_warp(squares), run.hyper[group * Hyper::WIDTH + Hyper::ROW_NORM]));

  sweep([&](auto count, int at, auto& y_pack, auto& e_values) {
    constexpr int kCount = decltype(count)::value;
    Pack<float16, kCount> e_pack;
    Pack<bfloat16, kCount> high;
    Pack<Lower, kCount> low;
    WholeIndex whole(piece.columns, piece.start + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      project_element<averages>(y_pack.elements[i], e_values.elements[i], excess, coefs);
      const std::uint32_t word = turned(random_word(key, whole.next()));
      if constexpr (averages) {
        e_pack.elements[i] = float16_at_random(e_values.elements[i], kQuarter ? part_of_e(word) : part_of_float16(word));
      }
      if constexpr (kSplit) {
        const SplitFloat parts =
            kQuarter ? split_to_24_bits(y_pack.elements[i], part_of_y(word)) : split(y_pack.elements[i]);
        high.elements[i] = parts.upper;
        low.elements[i] = static_cast<Lower>(parts.lower >> (kQuarter ? 8 : 0));
      }
    }
    if constexpr (averages) e_pack.template write<Cache::STREAM>(e + at);
    // what the forward pass reads is worth keeping
    if constexpr (kSplit) {
      low.template write<Cache::STREAM>(lower + at);
      high.template write<Cache::KEEP>(upper + at);
    } else {
      y_pack.template write<Cache::KEEP>(y + at);
    }
  });
}

}  // namespace cuda
}  // namespace sfplus
