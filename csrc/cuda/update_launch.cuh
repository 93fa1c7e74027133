// The kernels of one direction by dtype. A direction has a source file of its own, so that they are compiled
// side by side.
#pragma once

#include "launch.cuh"
#include "update.cuh"

namespace sfplus {
namespace cuda {

template <Direction direction>
void launch_update(const Table& table, int param_dtype, int grad_dtype, const Run& run,
                   const Queue& queue);

#define SFPLUS_UPDATES(direction, State, Param)                                                   \
  {                                                                                               \
    update_kernel<direction, State, Param, double>, update_kernel<direction, State, Param, float>, \
        update_kernel<direction, State, Param, bfloat16>,                                         \
        update_kernel<direction, State, Param, float16>                                           \
  }

#define SFPLUS_DEFINE_LAUNCH_UPDATE(direction, name)                                              \
  template <>                                                                                     \
  void launch_update<direction>(const Table& table, int param_dtype, int grad_dtype,              \
                                const Run& run, const Queue& queue) {                             \
    using Kernel = void (*)(Table, const double*, const double*, const double*);                  \
    static constexpr Kernel kernels[DType::WIDTH][DType::WIDTH] = { /* in the order of DType */   \
        SFPLUS_UPDATES(direction, double, double), SFPLUS_UPDATES(direction, float, float),       \
        SFPLUS_UPDATES(direction, float, bfloat16), SFPLUS_UPDATES(direction, float, float16)};   \
    launch(name, queue, kernels[param_dtype][grad_dtype], blocks_for(table.n_chunks, kWarps),     \
           kThreads, table, run.globals, run.group_coefs, run.tensor_coefs);                                \
  }

}  // namespace cuda
}  // namespace sfplus
