// What brings rows of z to a fixed norm: a pass of its own behind update, over y and e of the tensors whose rows are
// projected. It begins where update has ended, and finds in the L2 cache what fits.
#pragma once

#include "../math/dtypes.h"
#include "../math/project_rule.h"
#include "order.cuh"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

// The same bits in all threads of a warp.
__device__ __forceinline__ double sum_of_warp(double own) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2) own += __shfl_xor_sync(0xFFFFFFFFu, own, distance);
  return own;
}

// One row per warp: a sweep for the norm, and one that takes off what is too much. Nothing on a skipped step.
template <bool averages, class State, class Param>
__device__ __forceinline__ void project_pass(const Table& table, const Run& run) {
  constexpr bool kFollows = sizeof(Param) < sizeof(State);  // the parameter is a rounding of y
  constexpr int n = kPack<State>;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= table.n_chunks || run.globals[Global::SKIP] != 0) return;  // all of a warp alike
  const Piece piece = piece_of(table, index);
  const std::int64_t group = piece.columns[Row::GROUP];
  const ProjectCoefs<State> coefs =
      project_coefs<State>(run.groups + group * Group::WIDTH, run.group_coefs + group * GroupCoef::WIDTH);
  State* y = piece.at<State>(Row::Y);
  State* e = averages ? piece.at<State>(Row::DISPLACEMENT) : nullptr;
  Param* param = kFollows ? piece.at<Param>(Row::PARAM) : nullptr;
  const bool vectors = aligned<State, n>(y) && aligned<State, n>(e) && aligned<Param, n>(param);

  double squares = 0;
  share_out<n, 1>(piece.numel, vectors, lane, [&](auto count, auto, int offset) {
    constexpr int kCount = decltype(count)::value;
    using States = Pack<State, kCount>;
    const States y_pack = States::template read<Cache::STREAM>(y + offset);
    States e_pack = {};
    if constexpr (averages) e_pack = States::template read<Cache::STREAM>(e + offset);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const double z = static_cast<double>(z_of<averages>(y_pack.elements[i], e_pack.elements[i], coefs));
      squares += z * z;
    }
  });
  const State excess = static_cast<State>(
      excess_of_row(sum_of_warp(squares), run.hyper[group * Hyper::WIDTH + Hyper::ROW_NORM]));

  share_out<n, 1>(piece.numel, vectors, lane, [&](auto count, auto, int offset) {
    constexpr int kCount = decltype(count)::value;
    using States = Pack<State, kCount>;
    States y_pack = States::template read<Cache::STREAM>(y + offset), e_pack = {};
    if constexpr (averages) e_pack = States::template read<Cache::STREAM>(e + offset);
    Pack<Param, kCount> follower;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      project_element<averages>(y_pack.elements[i], e_pack.elements[i], excess, coefs);
      if constexpr (kFollows) follower.elements[i] = narrow<Param>(y_pack.elements[i]);
    }
    if constexpr (averages) e_pack.template write<Cache::STREAM>(e + offset);
    // what the forward pass reads is worth keeping
    if constexpr (kFollows) {
      y_pack.template write<Cache::STREAM>(y + offset);
      follower.template write<Cache::KEEP>(param + offset);
    } else {
      y_pack.template write<Cache::KEEP>(y + offset);
    }
  });
}

}  // namespace cuda
}  // namespace sfplus
