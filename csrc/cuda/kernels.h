// Every kernel by number and by name: kernels.cu defines them, passes.cpp chooses one, driver.cpp finds it in the
// machine code.
#pragma once

#include <string>

#include "../math/directions.h"
#include "../math/layout.h"

namespace sfplus {
namespace cuda {

constexpr int kReduce = 0;                                                    // [with_e][state][grad]
constexpr int kUpdate = kReduce + 2 * 2 * DType::WIDTH;                       // [direction][param][grad]
// Pairs of parameter and gradient for which a kernel does a whole step, or an update that averages nothing.
constexpr int kUsualPairs = 7;
constexpr int kStep = kUpdate + kAveragingDirections * DType::WIDTH * DType::WIDTH;  // [direction][usual_pair]
constexpr int kInterpolate = kStep + kAveragingDirections * kUsualPairs;             // [move][param]
constexpr int kFinalize = kInterpolate + Move::WIDTH * DType::WIDTH;
constexpr int kFinalizeTensors = kFinalize + 1;

// Over state of 16 bits, where no kernel does a whole step, and parameters and gradients are float32 or bfloat16: their number is that of half_type.
constexpr int kHalfTypes = 2, kHalfMoves = 3;
constexpr int kReduceHalf = kFinalizeTensors + 1;                                     // [grad]
constexpr int kUpdateHalf = kReduceHalf + kHalfTypes;  // [direction][param][grad]
constexpr int kInterpolateHalf = kUpdateHalf + kAveragingDirections * kHalfTypes * kHalfTypes;  // [move][param]
// Over state of 8 bits: without moments for bfloat16 parameters only, and so in interpolate.
constexpr int kUpdateQuarter = kInterpolateHalf + kHalfMoves * kHalfTypes;  // [direction][param][grad], then [grad]
constexpr int kInterpolateQuarter = kUpdateQuarter + 2 * kHalfTypes * kHalfTypes + kHalfTypes;  // [move]
// What averages nothing: no kernel does a whole step.
constexpr int kUpdatePlain = kInterpolateQuarter + 2;  // [direction that is PLAIN][usual_pair]
// And over state of 16 bits, and of 8: SGD without momentum keeps something of bfloat16 parameters only, and momentum alone
// is never in 8 bits.
constexpr int kUpdatePlainHalf = kUpdatePlain + (kDirections - kAveragingDirections) * kUsualPairs;
constexpr int kPlainHalves = 10;   // [param][grad] of Adam, [grad] of SGD, [param][grad] of SGD with momentum
constexpr int kUpdatePlainQuarter = kUpdatePlainHalf + kPlainHalves;  // [param][grad] of Adam
// Behind update, where rows are projected.
constexpr int kProject = kUpdatePlainQuarter + kHalfTypes * kHalfTypes;  // [averages][param]
// And over state of 16 bits, and of 8, of what is not as in full: float32 and bfloat16 parameters with e, then bfloat16 ones
// without.
constexpr int kProjectHalf = kProject + 2 * DType::WIDTH;
constexpr int kProjectQuarter = kProjectHalf + 3;
constexpr int kKernels = kProjectQuarter + 3;

inline int half_type(int dtype) { return dtype - DType::FLOAT32; }

// float64 parameters have float64 gradients, all others float32 ones or those of their own 16 bits; float32 ones also
// bfloat16 ones.
inline bool is_usual_pair(int param_dtype, int grad_dtype) {
  if (param_dtype == DType::FLOAT64 || grad_dtype == DType::FLOAT64) return param_dtype == grad_dtype;
  return grad_dtype == DType::FLOAT32 || grad_dtype == (param_dtype == DType::FLOAT16 ? DType::FLOAT16 : DType::BFLOAT16);
}

inline int usual_pair(int param_dtype, int grad_dtype) {
  if (param_dtype == DType::FLOAT64) return 0;
  return 1 + 2 * half_type(param_dtype) + (grad_dtype == DType::FLOAT32 ? 0 : 1);
}

// The number of a kernel behind kUpdatePlainHalf, and behind kUpdatePlainQuarter.
inline int plain_half(int direction, int param_dtype, int grad_dtype) {
  const int of = direction - kAveragingDirections;  // in the order of Direction
  const int before = of == 0 ? 0 : of == 1 ? kHalfTypes * kHalfTypes - kHalfTypes : kHalfTypes * kHalfTypes + kHalfTypes;
  return before + half_type(param_dtype) * kHalfTypes + half_type(grad_dtype);
}

// Such as "update_adam_float32_bfloat16": of the parameter, then of the gradient.
inline std::string kernel_name(int kernel) {
  static const char* const dtypes[] = {"float64", "float32", "bfloat16", "float16"};
  static const char* const moves[] = {"to_x", "to_y", "shift", "expose_z", "absorb_z"};
  static const char* const directions[] = {"adam",       "no_momentum", "sgd",
                                           "plain_adam", "plain_sgd",   "plain_momentum"};
  const auto pair = [&](int first, int second) {
    return std::string("_") + dtypes[first] + "_" + dtypes[second];
  };
  const auto half_pair = [&](int i) { return pair(DType::FLOAT32 + i / kHalfTypes, DType::FLOAT32 + i % kHalfTypes); };
  const auto one_of_usual = [&](int i) {
    const int param = i == 0 ? DType::FLOAT64 : DType::FLOAT32 + (i - 1) / 2;
    const int small = param == DType::FLOAT16 ? DType::FLOAT16 : DType::BFLOAT16;
    return pair(param, i == 0 ? DType::FLOAT64 : i % 2 == 1 ? DType::FLOAT32 : small);
  };
  constexpr int n = DType::WIDTH;
  if (kernel >= kProjectHalf) {
    static const char* const of_format[] = {"float32", "bfloat16", "plain_bfloat16"};
    return std::string(kernel < kProjectQuarter ? "project_half_" : "project_quarter_") +
           of_format[(kernel - kProjectHalf) % 3];
  }
  if (kernel >= kProject) {
    return std::string(kernel < kProject + n ? "project_plain_" : "project_") + dtypes[(kernel - kProject) % n];
  }
  if (kernel >= kUpdatePlainQuarter) return "update_quarter_plain_adam" + half_pair(kernel - kUpdatePlainQuarter);
  if (kernel >= kUpdatePlainHalf) {
    const int i = kernel - kUpdatePlainHalf;
    if (i < 4) return "update_half_plain_adam" + half_pair(i);
    if (i < 6) return "update_half_plain_sgd" + half_pair(i - 4 + kHalfTypes);
    return "update_half_plain_momentum" + half_pair(i - 6);
  }
  if (kernel >= kUpdatePlain) {
    const int i = kernel - kUpdatePlain;
    return std::string("update_") + directions[kAveragingDirections + i / kUsualPairs] + one_of_usual(i % kUsualPairs);
  }
  if (kernel >= kInterpolateQuarter) {
    return std::string("interpolate_quarter_") + moves[kernel - kInterpolateQuarter] + "_bfloat16";
  }
  if (kernel >= kUpdateQuarter) {
    constexpr int kPairs = kHalfTypes * kHalfTypes;
    const int i = kernel - kUpdateQuarter, of_sgd = i - 2 * kPairs;
    return std::string("update_quarter_") + directions[i / kPairs] +
           half_pair(of_sgd < 0 ? i % kPairs : kHalfTypes + of_sgd);
  }
  if (kernel >= kInterpolateHalf) {
    const int i = kernel - kInterpolateHalf;
    return std::string("interpolate_half_") + moves[i / kHalfTypes] + "_" + dtypes[DType::FLOAT32 + i % kHalfTypes];
  }
  if (kernel >= kUpdateHalf) {
    constexpr int kPairs = kHalfTypes * kHalfTypes;
    const int i = kernel - kUpdateHalf;
    return std::string("update_half_") + directions[i / kPairs] + half_pair(i % kPairs);
  }
  if (kernel >= kReduceHalf) return "reduce_half" + half_pair(kernel - kReduceHalf);
  if (kernel == kFinalize) return "finalize";
  if (kernel == kFinalizeTensors) return "finalize_tensors";
  if (kernel >= kInterpolate) {
    const int i = kernel - kInterpolate;
    return std::string("interpolate_") + moves[i / n] + "_" + dtypes[i % n];
  }
  if (kernel >= kStep) {
    const int i = kernel - kStep;
    return std::string("step_") + directions[i / kUsualPairs] + one_of_usual(i % kUsualPairs);
  }
  if (kernel >= kUpdate) {
    const int i = kernel - kUpdate;
    return std::string("update_") + directions[i / (n * n)] + pair(i / n % n, i % n);
  }
  return std::string(kernel / (2 * n) == 1 ? "reduce" : "reduce_grads") + pair(kernel / n % 2, kernel % n);
}

}  // namespace cuda
}  // namespace sfplus
