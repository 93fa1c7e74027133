// The reduction pass: one read of g, and of e where it is asked for. 8 bytes per element, or 4, in float32.
#pragma once

#include <cmath>

#include "finish.cuh"
#include "order.cuh"

namespace sfplus {
namespace cuda {

// Packs of each tensor that a thread has under way at once.
template <bool with_e, class E, class Grad>
constexpr int kReduceTurns = !with_e ? 4 : sizeof(E) == 2 && sizeof(Grad) == 4 ? 1 : 2;

// Block i makes slot i of partials: ``weight`` times the sums over the chunks i, i + n_partials, ..., which its
// warps take in turns. Which warp takes which follows from the table alone, so the bits do too. Where finish has
// tickets, the block that draws the last one finishes the step: all sums are there then, and in their order.
template <bool with_e, class State, class Grad, class E = State>
__device__ __forceinline__ void reduce_pass(const Table& table, double* partials,
                                            const std::int64_t n_partials, const double weight,
                                            const Finish& finish) {
  let_next_kernel_begin();
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const std::int64_t slot = blockIdx.x;
  constexpr int n = with_e ? kPack<E> : kPack<Grad>;  // 16 bytes of e, else of g
  double sums[Sum::WIDTH] = {};
  for (std::int64_t index = slot + warp * n_partials; index < table.n_chunks;
       index += kWarps * n_partials) {
    const Piece piece = piece_of(table, index);
    // default caching: update, which takes the chunks from the last to the first, may find some of it
    const Grad* grad = reinterpret_cast<const Grad*>(table.gradients[piece.row]) + piece.start;
    const E* displacement = with_e ? piece.at<const E>(Row::DISPLACEMENT) : nullptr;
    const bool vectors = aligned<Grad, n>(grad) && aligned<E, n>(displacement);
    State l1 = 0, dot = 0, squares = 0;  // of up to 128 terms each, then on in double
    share_out<n, kReduceTurns<with_e, E, Grad>>(piece.numel, vectors, lane, [&](auto count, auto turns,
                                                                       int offset) {
      constexpr int kCount = decltype(count)::value, kTurns = decltype(turns)::value;
      Pack<Grad, kCount> g[kTurns];
      Pack<E, kCount> e[kTurns];
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const int at = offset + turn * kLanes * kCount;
        g[turn] = Pack<Grad, kCount>::template read<Cache::KEEP>(grad + at);
        if constexpr (with_e) {
          e[turn] = Pack<E, kCount>::template read<Cache::KEEP>(displacement + at);
        }
      }
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const State value = widen<State>(g[turn].elements[i]);
          l1 += std::fabs(value);
          if constexpr (with_e) dot += value * widen<State>(e[turn].elements[i]);
          squares += value * value;
        }
      }
    });
    sums[Sum::GRAD_L1] += static_cast<double>(l1);
    sums[Sum::GRAD_DOT_E] += static_cast<double>(dot);
    sums[Sum::GRAD_SQ] += static_cast<double>(squares);
  }
  block_sum<kWarps>(sums);
  if (threadIdx.x == 0) {  // the array stays in registers: no index that is known at run time only
    for (int column = 0; column < Sum::WIDTH; ++column) {
      partials[slot * Sum::WIDTH + column] = weight * sums[column];
    }
  }
  if (finish.tickets != nullptr) finish_last(finish);
}

}  // namespace cuda
}  // namespace sfplus
