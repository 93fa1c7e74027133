#include "interpolate.cuh"

#include "launch.cuh"

namespace sfplus {
namespace cuda {

#define SFPLUS_MOVES(move)                                                               \
  {                                                                                      \
    interpolate_kernel<move, double, double>, interpolate_kernel<move, float, float>,    \
        interpolate_kernel<move, float, bfloat16>, interpolate_kernel<move, float, float16> \
  }

void interpolate(const Table& table, int param_dtype, const Run& run, int move, const Queue& queue) {
  using Kernel = void (*)(Table, Run);
  static constexpr Kernel kernels[Move::WIDTH][DType::WIDTH] = {  // in the order of Move and of DType
      SFPLUS_MOVES(Move::TO_X), SFPLUS_MOVES(Move::TO_Y), SFPLUS_MOVES(Move::SHIFT),
      SFPLUS_MOVES(Move::EXPOSE_Z), SFPLUS_MOVES(Move::ABSORB_Z)};
  launch("interpolate", queue, kernels[move][param_dtype], blocks_for(table.n_chunks, kWarps), kThreads,
         table, run);
}

}  // namespace cuda
}  // namespace sfplus
