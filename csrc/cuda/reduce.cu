#include "reduce.cuh"

#include "launch.cuh"

namespace sfplus {
namespace cuda {

#define SFPLUS_REDUCES(with_e, State)                                                      \
  {                                                                                        \
    reduce_kernel<with_e, State, double>, reduce_kernel<with_e, State, float>,             \
        reduce_kernel<with_e, State, bfloat16>, reduce_kernel<with_e, State, float16>      \
  }

void reduce(const Table& table, int param_dtype, int grad_dtype, bool with_e, double* partials,
            std::int64_t n_partials, const Queue& queue) {
  using Kernel = void (*)(Table, double*, std::int64_t);
  // by with_e, by state, then as DType
  static constexpr Kernel kernels[2][2][DType::WIDTH] = {
      {SFPLUS_REDUCES(false, double), SFPLUS_REDUCES(false, float)},
      {SFPLUS_REDUCES(true, double), SFPLUS_REDUCES(true, float)}};
  const int state_dtype = param_dtype == DType::FLOAT64 ? 0 : 1;
  launch("reduce", queue, kernels[with_e ? 1 : 0][state_dtype][grad_dtype],
         static_cast<unsigned>(n_partials), kThreads, table, partials, n_partials);
}

}  // namespace cuda
}  // namespace sfplus
