// Every kernel under a name that is the same in all machine code: see kernels.h. One source, so that one file holds
// all of them for an architecture; nvcc and NVRTC compile it alike.
#include "finalize.cuh"
#include "interpolate.cuh"
#include "interpolate_half.cuh"
#include "project.cuh"
#include "project_half.cuh"
#include "reduce.cuh"
#include "update.cuh"
#include "update_half.cuh"
#include "update_quarter.cuh"

namespace sfplus {
namespace cuda {

using float64 = double;
using float32 = float;

// dtype of the state beside a parameter
template <class Param>
struct StateBeside {
  using Type = float;
};
template <>
struct StateBeside<double> {
  using Type = double;
};

#define SFPLUS_FOR_DTYPES(X, ...) \
  X(__VA_ARGS__, float64) X(__VA_ARGS__, float32) X(__VA_ARGS__, bfloat16) X(__VA_ARGS__, float16)

#define SFPLUS_REDUCE(name, with_e, State, Grad)                                                 \
  extern "C" __global__ void __launch_bounds__(kThreads, 7) name##_##State##_##Grad(             \
      const Table table, double* partials, const std::int64_t n_partials, const double weight,   \
      const __grid_constant__ Finish finish) {                                                                     \
    reduce_pass<with_e, State, Grad>(table, partials, n_partials, weight, finish);               \
  }
SFPLUS_FOR_DTYPES(SFPLUS_REDUCE, reduce, true, float64)
SFPLUS_FOR_DTYPES(SFPLUS_REDUCE, reduce, true, float32)
SFPLUS_FOR_DTYPES(SFPLUS_REDUCE, reduce_grads, false, float64)
SFPLUS_FOR_DTYPES(SFPLUS_REDUCE, reduce_grads, false, float32)

#define SFPLUS_UPDATE(pass, whole, name, direction, Param, Grad)                                 \
  extern "C" __global__ void                                                                     \
  __launch_bounds__(kThreads, kUpdateBlocks<whole, direction, StateBeside<Param>::Type, Param, Grad>)       \
      pass##_##name##_##Param##_##Grad(const Table table, const __grid_constant__ Finish finish) { \
    update_pass<whole, direction, StateBeside<Param>::Type, Param, Grad>(table, finish);         \
  }
#define SFPLUS_UPDATES(name, direction)                                    \
  SFPLUS_FOR_DTYPES(SFPLUS_UPDATE, update, false, name, direction, float64)  \
  SFPLUS_FOR_DTYPES(SFPLUS_UPDATE, update, false, name, direction, float32)  \
  SFPLUS_FOR_DTYPES(SFPLUS_UPDATE, update, false, name, direction, bfloat16) \
  SFPLUS_FOR_DTYPES(SFPLUS_UPDATE, update, false, name, direction, float16)
SFPLUS_UPDATES(adam, Direction::ADAM)
SFPLUS_UPDATES(no_momentum, Direction::ADAM_NO_MOMENTUM)
SFPLUS_UPDATES(sgd, Direction::SGD)

// Whole steps, and what averages nothing, for the pairs that are in use: see usual_pair.
#define SFPLUS_USUAL_UPDATES(pass, whole, name, direction)            \
  SFPLUS_UPDATE(pass, whole, name, direction, float64, float64)       \
  SFPLUS_UPDATE(pass, whole, name, direction, float32, float32)       \
  SFPLUS_UPDATE(pass, whole, name, direction, float32, bfloat16)      \
  SFPLUS_UPDATE(pass, whole, name, direction, bfloat16, float32)      \
  SFPLUS_UPDATE(pass, whole, name, direction, bfloat16, bfloat16)     \
  SFPLUS_UPDATE(pass, whole, name, direction, float16, float32)       \
  SFPLUS_UPDATE(pass, whole, name, direction, float16, float16)
SFPLUS_USUAL_UPDATES(step, true, adam, Direction::ADAM)
SFPLUS_USUAL_UPDATES(step, true, no_momentum, Direction::ADAM_NO_MOMENTUM)
SFPLUS_USUAL_UPDATES(step, true, sgd, Direction::SGD)
SFPLUS_USUAL_UPDATES(update, false, plain_adam, Direction::PLAIN_ADAM)
SFPLUS_USUAL_UPDATES(update, false, plain_sgd, Direction::PLAIN_SGD)
SFPLUS_USUAL_UPDATES(update, false, plain_momentum, Direction::PLAIN_MOMENTUM)

#define SFPLUS_PROJECT(name, averages, Param)                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads, 8)                                      \
      name##_##Param(const Table table, const Run run) {                                         \
    project_pass<averages, StateBeside<Param>::Type, Param>(table, run);                         \
  }
SFPLUS_FOR_DTYPES(SFPLUS_PROJECT, project_plain, false)
SFPLUS_FOR_DTYPES(SFPLUS_PROJECT, project, true)

#define SFPLUS_INTERPOLATE(name, move, Param)                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads, 8)                                      \
      interpolate_##name##_##Param(const Table table, const Run run) {                           \
    interpolate_pass<move, StateBeside<Param>::Type, Param>(table, run);                         \
  }
SFPLUS_FOR_DTYPES(SFPLUS_INTERPOLATE, to_x, Move::TO_X)
SFPLUS_FOR_DTYPES(SFPLUS_INTERPOLATE, to_y, Move::TO_Y)
SFPLUS_FOR_DTYPES(SFPLUS_INTERPOLATE, shift, Move::SHIFT)
SFPLUS_FOR_DTYPES(SFPLUS_INTERPOLATE, expose_z, Move::EXPOSE_Z)
SFPLUS_FOR_DTYPES(SFPLUS_INTERPOLATE, absorb_z, Move::ABSORB_Z)

// Over state of 16 bits: float32 and bfloat16 parameters, with gradients of either.
#define SFPLUS_REDUCE_HALF(Grad)                                                                 \
  extern "C" __global__ void __launch_bounds__(kThreads, 7) reduce_half_float32_##Grad(          \
      const Table table, double* partials, const std::int64_t n_partials, const double weight,   \
      const __grid_constant__ Finish finish) {                                                   \
    reduce_pass<true, float, Grad, float16>(table, partials, n_partials, weight, finish);        \
  }
SFPLUS_REDUCE_HALF(float32)
SFPLUS_REDUCE_HALF(bfloat16)

#define SFPLUS_UPDATE_HALF(name, direction, Param, Grad)                                         \
  extern "C" __global__ void __launch_bounds__(kThreads, kUpdateHalfBlocks<direction, Grad>)           \
      update_half_##name##_##Param##_##Grad(const Table table, const __grid_constant__ Finish finish) { \
    update_half_pass<direction, Param, Grad>(table, finish);                                     \
  }
#define SFPLUS_UPDATES_HALF(name, direction)                 \
  SFPLUS_UPDATE_HALF(name, direction, float32, float32)      \
  SFPLUS_UPDATE_HALF(name, direction, float32, bfloat16)     \
  SFPLUS_UPDATE_HALF(name, direction, bfloat16, float32)     \
  SFPLUS_UPDATE_HALF(name, direction, bfloat16, bfloat16)
SFPLUS_UPDATES_HALF(adam, Direction::ADAM)
SFPLUS_UPDATES_HALF(no_momentum, Direction::ADAM_NO_MOMENTUM)
SFPLUS_UPDATES_HALF(sgd, Direction::SGD)
SFPLUS_UPDATES_HALF(plain_adam, Direction::PLAIN_ADAM)
SFPLUS_UPDATES_HALF(plain_momentum, Direction::PLAIN_MOMENTUM)
SFPLUS_UPDATE_HALF(plain_sgd, Direction::PLAIN_SGD, bfloat16, float32)
SFPLUS_UPDATE_HALF(plain_sgd, Direction::PLAIN_SGD, bfloat16, bfloat16)

#define SFPLUS_PROJECT_IN_BITS(name, format, averages, Param)                                    \
  extern "C" __global__ void __launch_bounds__(kThreads, 6)                                      \
      project_##name##_##Param(const Table table, const Run run) {                               \
    project_half_pass<format, averages, Param>(table, run);                                      \
  }
#define SFPLUS_PROJECTS_IN_BITS(name, format)                       \
  SFPLUS_PROJECT_IN_BITS(name, format, true, float32)               \
  SFPLUS_PROJECT_IN_BITS(name, format, true, bfloat16)              \
  SFPLUS_PROJECT_IN_BITS(name##_plain, format, false, bfloat16)
SFPLUS_PROJECTS_IN_BITS(half, Format::HALF)
SFPLUS_PROJECTS_IN_BITS(quarter, Format::QUARTER)

#define SFPLUS_INTERPOLATE_HALF(name, move, Param)                                               \
  extern "C" __global__ void __launch_bounds__(kThreads, 8)                                      \
      interpolate_half_##name##_##Param(const Table table, const Run run) {                      \
    interpolate_half_pass<move, Param, std::uint16_t>(table, run);                               \
  }
#define SFPLUS_INTERPOLATES_HALF(name, move) \
  SFPLUS_INTERPOLATE_HALF(name, move, float32) SFPLUS_INTERPOLATE_HALF(name, move, bfloat16)
SFPLUS_INTERPOLATES_HALF(to_x, Move::TO_X)
SFPLUS_INTERPOLATES_HALF(to_y, Move::TO_Y)
SFPLUS_INTERPOLATES_HALF(shift, Move::SHIFT)

// Over state of 8 bits: what is not here the kernels over 16 bits do.
#define SFPLUS_UPDATE_QUARTER(name, direction, Param, Grad)                                      \
  extern "C" __global__ void __launch_bounds__(kThreads, kUpdateQuarterBlocks<direction, Grad>)        \
      update_quarter_##name##_##Param##_##Grad(const Table table, const __grid_constant__ Finish finish) { \
    update_quarter_pass<direction, Param, Grad>(table, finish);                                  \
  }
#define SFPLUS_UPDATES_QUARTER(name, direction, Param)      \
  SFPLUS_UPDATE_QUARTER(name, direction, Param, float32)    \
  SFPLUS_UPDATE_QUARTER(name, direction, Param, bfloat16)
SFPLUS_UPDATES_QUARTER(adam, Direction::ADAM, float32)
SFPLUS_UPDATES_QUARTER(adam, Direction::ADAM, bfloat16)
SFPLUS_UPDATES_QUARTER(no_momentum, Direction::ADAM_NO_MOMENTUM, float32)
SFPLUS_UPDATES_QUARTER(no_momentum, Direction::ADAM_NO_MOMENTUM, bfloat16)
SFPLUS_UPDATES_QUARTER(sgd, Direction::SGD, bfloat16)
SFPLUS_UPDATES_QUARTER(plain_adam, Direction::PLAIN_ADAM, float32)
SFPLUS_UPDATES_QUARTER(plain_adam, Direction::PLAIN_ADAM, bfloat16)

#define SFPLUS_INTERPOLATE_QUARTER(name, move)                                                   \
  extern "C" __global__ void __launch_bounds__(kThreads, 8)                                      \
      interpolate_quarter_##name##_bfloat16(const Table table, const Run run) {                  \
    interpolate_half_pass<move, bfloat16, std::uint8_t>(table, run);                             \
  }
SFPLUS_INTERPOLATE_QUARTER(to_x, Move::TO_X)
SFPLUS_INTERPOLATE_QUARTER(to_y, Move::TO_Y)

extern "C" __global__ void __launch_bounds__(kThreads) finalize(const __grid_constant__ Finish finish) {
  finalize_pass(finish);
}
extern "C" __global__ void __launch_bounds__(kThreads) finalize_tensors(const __grid_constant__ Finish finish) {
  finalize_tensors_pass(finish);
}

}  // namespace cuda
}  // namespace sfplus
