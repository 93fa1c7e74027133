// The parameters between y and x, where e has 16 bits (Format::HALF, Format::QUARTER): it is read and never written.
#pragma once

#include <type_traits>

#include "../math/move_rule.h"
#include "../math/split_rule.h"
#include "update_half.cuh"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

// One chunk per warp. Lower is what is beside a bfloat16 parameter. TO_X and TO_Y find y's upper half beside the parameter, which holds x.
template <int move, class Param, class Lower>
__device__ __forceinline__ void interpolate_half_pass(const Table& table, const Run& run) {
  constexpr bool kSplit = std::is_same<Param, bfloat16>::value;
  constexpr bool kWritesLower = move != Move::TO_X, kReadsParam = move != Move::TO_X;
  constexpr int n = kHalfPack;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= table.n_chunks) return;
  const Piece piece = piece_of(table, index);
  const std::int64_t group = piece.columns[Row::GROUP], slot = piece.columns[Row::SLOT];
  const MoveCoefs<float> coefs = move_coefs<float>(
      move, run.globals, run.hyper + group * Hyper::WIDTH, run.group_coefs + group * GroupCoef::WIDTH,
      run.tensors + slot * Scalar::WIDTH, run.tensor_coefs + slot * TensorCoef::WIDTH);
  const float16* e = piece.at<float16>(Row::DISPLACEMENT);
  float* y = kSplit ? nullptr : piece.at<float>(Row::Y);
  Lower* lower = kSplit ? piece.at<Lower>(Row::Y) : nullptr;
  bfloat16* param = kSplit ? piece.at<bfloat16>(Row::PARAM) : nullptr;
  const bfloat16* kept = kSplit && move != Move::SHIFT ? piece.at<bfloat16>(Row::Y_HIGH) : nullptr;
  const bool vectors = aligned<float16, n>(e) && aligned<float, n>(y) && aligned<Lower, n>(lower) &&
                       aligned<bfloat16, n>(param) && aligned<bfloat16, n>(kept);

  share_out<n, 1>(piece.numel, vectors, lane, [&](auto count, auto, int at) {
    constexpr int kCount = decltype(count)::value;
    using Halves = Pack<bfloat16, kCount>;
    Pack<Lower, kCount> lower_pack;
    Pack<float, kCount> y_pack;
    Halves param_pack, kept_pack;
    const auto e_pack = Pack<float16, kCount>::template read<Cache::STREAM>(e + at);
    if constexpr (kSplit) {
      lower_pack = Pack<Lower, kCount>::template read<Cache::STREAM>(lower + at);
      if constexpr (kReadsParam) param_pack = Halves::template read<Cache::STREAM>(param + at);
      if constexpr (move != Move::SHIFT) kept_pack = Halves::template read<Cache::STREAM>(kept + at);
    } else {
      y_pack = Pack<float, kCount>::template read<Cache::STREAM>(y + at);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float by_e = rounded_product(coefs.e_to_y, widen<float>(e_pack.elements[i]));
      if constexpr (!kSplit) {
        y_pack.elements[i] = y_pack.elements[i] + by_e;
      } else if constexpr (move == Move::TO_X) {
        param_pack.elements[i] =
            narrow<bfloat16>(join({kept_pack.elements[i], lower_half(lower_pack.elements[i])}) + by_e);
      } else {
        SplitFloat parts;
        if constexpr (move == Move::SHIFT) {
          parts = split(join({param_pack.elements[i], lower_half(lower_pack.elements[i])}) + by_e);
        } else {
          parts = split_y_of_x<Lower>({kept_pack.elements[i], lower_half(lower_pack.elements[i])}, by_e, param_pack.elements[i]);
        }
        param_pack.elements[i] = parts.upper;
        lower_pack.elements[i] = static_cast<Lower>(parts.lower >> (sizeof(Lower) == 1 ? 8 : 0));
      }
    }
    if constexpr (kSplit) {
      param_pack.template write<Cache::KEEP>(param + at);
      if constexpr (kWritesLower) lower_pack.template write<Cache::STREAM>(lower + at);
    } else {
      y_pack.template write<Cache::KEEP>(y + at);
    }
  });
}

}  // namespace cuda
}  // namespace sfplus
