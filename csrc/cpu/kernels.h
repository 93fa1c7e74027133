// The element loops over one chunk, one table of them for each instruction set that was compiled.
#pragma once

#include <cstdint>

#include "../math/layout.h"

namespace sfplus {

struct ReduceChunk {
  const void *grad, *displacement;
  std::int64_t numel;
};

struct UpdateChunk {
  const void* grad;
  void* y;
  void *exp_avg, *exp_avg_sq;  // unused where the direction keeps none
  void* displacement;
  void* param;  // null where the parameter is y itself
  std::int64_t numel;
  const double *group_coefs, *tensor_coefs;
};

struct MoveChunk {
  void *y, *displacement;
  void* param;  // null where the parameter is y itself
  std::int64_t numel;
  const double *globals, *hyper, *group_coefs, *scalars, *tensor_coefs;  // rows of this tensor's
};

struct Kernels {
  // adds the chunk's sums to sums[Sum::WIDTH]; by [with e][state dtype][gradient dtype]
  void (*reduce[2][2][DType::WIDTH])(const ReduceChunk&, double* sums);
  // by [Direction][parameter dtype][gradient dtype]
  void (*update[3][DType::WIDTH][DType::WIDTH])(const UpdateChunk&);
  // by [Move][parameter dtype]
  void (*interpolate[Move::WIDTH][DType::WIDTH])(const MoveChunk&);
  // x <- -x: one read and one write of memory and nothing else, to measure bandwidth with; in n_arrays arrays
  // side by side, each beginning ``distance`` elements after the one before
  void (*negate)(float* x, std::int64_t numel, std::int64_t distance, int n_arrays);
};

}  // namespace sfplus
