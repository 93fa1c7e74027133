// Every kernel by number and by name: kernels.cu defines them, passes.cpp chooses one, driver.cpp finds it in the
// machine code.
#pragma once

#include <string>

#include "../math/layout.h"

namespace sfplus {
namespace cuda {

constexpr int kDirections = 3;  // in the order of Direction in math/update_rule.h

constexpr int kReduce = 0;                                                    // [with_e][state][grad]
constexpr int kUpdate = kReduce + 2 * 2 * DType::WIDTH;                       // [direction][param][grad]
constexpr int kStep = kUpdate + kDirections * DType::WIDTH * DType::WIDTH;        // as kUpdate
constexpr int kInterpolate = kStep + kDirections * DType::WIDTH * DType::WIDTH;   // [move][param]
constexpr int kFinalize = kInterpolate + Move::WIDTH * DType::WIDTH;
constexpr int kFinalizeTensors = kFinalize + 1;
constexpr int kKernels = kFinalizeTensors + 1;

// Such as "update_adam_float32_bfloat16": of the parameter, then of the gradient.
inline std::string kernel_name(int kernel) {
  static const char* const dtypes[] = {"float64", "float32", "bfloat16", "float16"};
  static const char* const moves[] = {"to_x", "to_y", "shift", "expose_z", "absorb_z"};
  static const char* const directions[] = {"adam", "no_momentum", "sgd"};
  const auto pair = [&](int first, int second) {
    return std::string("_") + dtypes[first] + "_" + dtypes[second];
  };
  constexpr int n = DType::WIDTH;
  if (kernel == kFinalize) return "finalize";
  if (kernel == kFinalizeTensors) return "finalize_tensors";
  if (kernel >= kInterpolate) {
    const int i = kernel - kInterpolate;
    return std::string("interpolate_") + moves[i / n] + "_" + dtypes[i % n];
  }
  if (kernel >= kUpdate) {
    const int i = kernel - (kernel < kStep ? kUpdate : kStep);
    return std::string(kernel < kStep ? "update_" : "step_") + directions[i / (n * n)] + pair(i / n % n, i % n);
  }
  return std::string(kernel / (2 * n) == 1 ? "reduce" : "reduce_grads") + pair(kernel / n % 2, kernel % n);
}

}  // namespace cuda
}  // namespace sfplus
