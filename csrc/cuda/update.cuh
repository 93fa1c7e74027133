// The update pass: one read of g, y, e, m, v and one write of y, e, m, v (of e, m and v where the direction
// keeps them), and of the parameter if it is not y itself, which is read too: see follow_rule.h. 36 bytes per
// element where all are float32, and 28 without e.
#pragma once

#include <type_traits>

#include "../math/follow_rule.h"
#include "../math/update_rule.h"
#include "drift.cuh"
#include "finish.cuh"
#include "order.cuh"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

// With fewer tensors a thread takes two packs of each: four loads at least are then under way.
template <Direction direction>
constexpr int kUpdateTurns = keeps_v(direction) ? 1 : 2;

// Blocks of a multiprocessor that the compiler is to leave registers for: 72 of them with two moments and e, 64 with less. One
// block less where a value is rounded to bfloat16; 80 where the step is whole or there is float16; and 96 where a value is rounded
// in a whole step, or any of it is double.
template <bool whole, Direction direction, class State, class Param, class Grad>
constexpr int kUpdateBlocks =
    sizeof(State) == 8 || sizeof(Grad) == 8 ? 5
    : whole                                 ? (sizeof(Param) < sizeof(State) ? 5 : 6)
    : std::is_same<Param, float16>::value || std::is_same<Grad, float16>::value
        ? (direction == Direction::ADAM && kArch >= 1000 ? 5 : 6)
    : direction == Direction::PLAIN_MOMENTUM && kArch >= 1200 ? 6
    : direction == Direction::ADAM ? (sizeof(Param) == sizeof(State) ? 7 : kArch >= 1000 ? 5 : 6)
                                   : (sizeof(Param) < sizeof(State) ? 7 : 8);

// One chunk per warp, from the last to the first: reduce, which goes the other way, has just left the last
// ones in the cache, and the next forward pass begins with the first ones. Nothing on a skipped step.
// Where the step is ``whole`` no kernel came before: the first block forms the coefficients.
template <bool whole, Direction direction, class State, class Param, class Grad>
__device__ __forceinline__ void update_pass(const Table& table, const Finish& finish) {
  constexpr bool kHasM = keeps_m(direction), kHasV = keeps_v(direction), kHasE = averages(direction);
  constexpr bool kFollows = sizeof(Param) < sizeof(State);  // the parameter is a rounding of y
  constexpr int n = kPack<State>;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t turn_of_warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  const bool any = turn_of_warp < table.n_chunks;
  const Piece piece = piece_of(table, any ? table.n_chunks - 1 - turn_of_warp : 0);
  const Grad* grad = reinterpret_cast<const Grad*>(table.gradients[piece.row]) + piece.start;
  State* y = piece.at<State>(Row::Y);
  State* e = kHasE ? piece.at<State>(Row::DISPLACEMENT) : nullptr;
  State* m = kHasM ? piece.at<State>(Row::EXP_AVG) : nullptr;
  State* v = kHasV ? piece.at<State>(Row::EXP_AVG_SQ) : nullptr;
  Param* param = kFollows ? piece.at<Param>(Row::PARAM) : nullptr;
  const bool vectors = aligned<Grad, n>(grad) && aligned<State, n>(y) && aligned<State, n>(e) &&
                       aligned<State, n>(m) && aligned<State, n>(v) && aligned<Param, n>(param);

  wait_for_earlier_kernels();
  if constexpr (whole) finish_first(finish);
  const Run& run = finish.run;
  if (!any || run.globals[Global::SKIP] != 0) return;
  const UpdateCoefs<State> coefs =
      update_coefs<State>(run.group_coefs + piece.columns[Row::GROUP] * GroupCoef::WIDTH,
                          run.tensor_coefs + piece.columns[Row::SLOT] * TensorCoef::WIDTH);

  DriftSums<State, kHasV && !kFollows> drift;
  if constexpr (!whole) drift.begin(table);
  share_out<n, kUpdateTurns<direction>>(piece.numel, vectors, lane, [&](auto count, auto turns, int offset) {
    constexpr int kCount = decltype(count)::value, kTurns = decltype(turns)::value;
    using States = Pack<State, kCount>;
    Pack<Grad, kCount> g[kTurns];
    States old_m[kTurns] = {}, old_v[kTurns] = {}, old_e[kTurns] = {}, old_y[kTurns];
    Pack<Param, kCount> follower[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int at = offset + turn * kLanes * kCount;
      g[turn] = Pack<Grad, kCount>::template read<Cache::STREAM>(grad + at);
      if constexpr (kHasM) old_m[turn] = States::template read<Cache::STREAM>(m + at);
      if constexpr (kHasV) old_v[turn] = States::template read<Cache::STREAM>(v + at);
      if constexpr (kHasE) old_e[turn] = States::template read<Cache::STREAM>(e + at);
      old_y[turn] = States::template read<Cache::STREAM>(y + at);
      if constexpr (kFollows) follower[turn] = Pack<Param, kCount>::template read<Cache::STREAM>(param + at);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int at = offset + turn * kLanes * kCount;
      if constexpr (kFollows) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          old_y[turn].elements[i] = y_or_written(old_y[turn].elements[i], follower[turn].elements[i]);
        }
      }
      if constexpr (!whole) drift.keep(table, old_y[turn].elements, g[turn].elements);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const State before = old_y[turn].elements[i];
        update_element<direction>(widen<State>(g[turn].elements[i]), old_m[turn].elements[i],
                                  old_v[turn].elements[i], old_y[turn].elements[i],
                                  old_e[turn].elements[i], coefs);
        if constexpr (!whole) {
          drift.add(table, before, old_y[turn].elements[i], widen<State>(g[turn].elements[i]));
        }
        if constexpr (kFollows) follower[turn].elements[i] = narrow<Param>(old_y[turn].elements[i]);
      }
      if constexpr (kHasM) old_m[turn].template write<Cache::STREAM>(m + at);
      if constexpr (kHasV) old_v[turn].template write<Cache::STREAM>(v + at);
      if constexpr (kHasE) old_e[turn].template write<Cache::STREAM>(e + at);
      if constexpr (!whole) drift.add_kept(table, old_y[turn].elements);
      // what the forward pass reads is worth keeping
      if constexpr (kFollows) {
        old_y[turn].template write<Cache::STREAM>(y + at);
        follower[turn].template write<Cache::KEEP>(param + at);
      } else {
        old_y[turn].template write<Cache::KEEP>(y + at);
      }
    }
  });
  if constexpr (!whole) drift.write(table, table.n_chunks - 1 - turn_of_warp, lane);
}

}  // namespace cuda
}  // namespace sfplus
