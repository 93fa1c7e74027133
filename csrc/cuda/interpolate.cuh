// The parameters between y, x and z: at the least one read of p and e and one write of p, 12 bytes per element
// of float32; with e written too, 16. Of a parameter that follows y both are read and written.
#pragma once

#include "../math/move_rule.h"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

constexpr int kInterpolateTurns = 2;  // packs of each tensor that a thread has under way at once

// One chunk per warp. See Move in sfplus_kernels/contract/layout.py.
template <int move, class State, class Param>
__device__ __forceinline__ void interpolate_pass(const Table& table, const Run& run) {
  constexpr bool kFollows = sizeof(Param) < sizeof(State);  // the parameter is a rounding of y
  constexpr bool kWritesE = move == Move::EXPOSE_Z || move == Move::ABSORB_Z;
  constexpr int n = kPack<State>;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= table.n_chunks) return;
  const Piece piece = piece_of(table, index);
  const std::int64_t group = piece.columns[Row::GROUP], slot = piece.columns[Row::SLOT];
  const MoveCoefs<State> coefs = move_coefs<State>(
      move, run.globals, run.hyper + group * Hyper::WIDTH, run.group_coefs + group * GroupCoef::WIDTH,
      run.tensors + slot * Scalar::WIDTH, run.tensor_coefs + slot * TensorCoef::WIDTH);
  State* y = piece.at<State>(Row::Y);
  State* e = piece.at<State>(Row::DISPLACEMENT);
  Param* param = kFollows ? piece.at<Param>(Row::PARAM) : nullptr;
  const bool vectors = aligned<State, n>(y) && aligned<State, n>(e) && aligned<Param, n>(param);

  share_out<n, kInterpolateTurns>(piece.numel, vectors, lane, [&](auto count, auto turns, int offset) {
    constexpr int kCount = decltype(count)::value, kTurns = decltype(turns)::value;
    using States = Pack<State, kCount>;
    using Params = Pack<Param, kCount>;
    States y_pack[kTurns], e_pack[kTurns];
    Params param_pack[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int at = offset + turn * kLanes * kCount;
      y_pack[turn] = States::template read<Cache::STREAM>(y + at);
      e_pack[turn] = States::template read<Cache::STREAM>(e + at);
      if constexpr (kFollows) param_pack[turn] = Params::template read<Cache::STREAM>(param + at);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int at = offset + turn * kLanes * kCount;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        State y_i = y_pack[turn].elements[i], e_i = e_pack[turn].elements[i];
        if constexpr (kFollows) {
          param_pack[turn].elements[i] = move_follower<move>(y_i, e_i, param_pack[turn].elements[i], coefs);
        } else {
          move_element<move>(y_i, e_i, coefs);
        }
        y_pack[turn].elements[i] = y_i;
        e_pack[turn].elements[i] = e_i;
      }
      y_pack[turn].template write<Cache::KEEP>(y + at);
      if constexpr (kWritesE) e_pack[turn].template write<Cache::STREAM>(e + at);
      if constexpr (kFollows) param_pack[turn].template write<Cache::KEEP>(param + at);
    }
  });
}

}  // namespace cuda
}  // namespace sfplus
