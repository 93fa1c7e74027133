// The element loops over one chunk, one table of them for each instruction set that was compiled.
#pragma once

#include <cstdint>

#include "../math/directions.h"
#include "../math/layout.h"

namespace sfplus {

struct ReduceChunk {
  const void *grad, *displacement;
  std::int64_t numel;
};

struct UpdateChunk {
  const void* grad;
  void* y;
  void *exp_avg, *exp_avg_sq, *displacement;  // unused where the direction keeps none
  void* param;  // null where the parameter is y itself
  std::int64_t numel;
  const double *group_coefs, *tensor_coefs;
  std::uint8_t* exponents;  // of v, where the moments are kept in 8 bits
};

// One row of a tensor, after its update.
struct RowToProject {
  void *y, *displacement;
  void* param;  // null where the parameter is y itself; in fewer than 32 bits as in UpdateChunk
  std::int64_t numel;
  const double *group, *hyper, *group_coefs;  // rows of this tensor's
};

// Of a chunk of state in fewer than 32 bits: the tensor's keys of this step, and the index of the chunk's first element in
// the whole tensor; those of the others follow it.
struct Noise {
  std::uint32_t key_a, key_b, index;
};

struct MoveChunk {
  void *y, *displacement;
  void* param;  // null where the parameter is y itself
  const void* y_high;  // null but where the parameter is half of y, and holds x
  std::int64_t numel;
  const double *globals, *hyper, *group_coefs, *scalars, *tensor_coefs;  // rows of this tensor's
};

struct StreamArray {
  void* at;
  std::int64_t width;  // bytes of an element: 1, 2, 4 or 8
};

struct Kernels {
  // adds the chunk's sums to sums[Sum::WIDTH]; by [with e][state dtype][gradient dtype]
  void (*reduce[2][2][DType::WIDTH])(const ReduceChunk&, double* sums);
  // by [Direction][parameter dtype][gradient dtype]
  void (*update[kDirections][DType::WIDTH][DType::WIDTH])(const UpdateChunk&);
  // by [whether e is kept][parameter dtype]
  void (*project[2][DType::WIDTH])(const RowToProject&);
  // by [Move][parameter dtype]
  void (*interpolate[Move::WIDTH][DType::WIDTH])(const MoveChunk&);
  // reads the elements from ``start`` on of all arrays, side by side as a pass does it, writes those of the first n_changed,
  // of each word the bits in ``flipped`` turned, and returns the exclusive or of the others' words: what memory allows a
  // pass with such arrays. Memory is asked for as many bytes ahead, or where that is 0 as the passes do it.
  std::uint32_t (*stream)(const StreamArray* arrays, int n_arrays, int n_changed, std::int64_t start,
                          std::int64_t numel, std::uint32_t flipped, std::int64_t ahead);
};

// For Format::HALF; the dtype of the gradient is looked at within.
struct Kernels16bit {
  void (*reduce)(const ReduceChunk&, int grad_dtype, double* sums);
  // by [Direction][whether the parameter is half of y]; null where nothing would be kept in fewer bits
  void (*update[kDirections][2])(const UpdateChunk&, int grad_dtype, const Noise&);
  // by [whether e is kept][whether the parameter is half of y]; null where y is all, and whole
  void (*project[2][2])(const RowToProject&, const Noise&);
  // by [Move][y whole, or 16 bits of it beside a parameter, or 8]; null for those that write e
  void (*interpolate[Move::WIDTH][3])(const MoveChunk&);
};

// For Format::QUARTER, where every number of elements is a multiple of 32. What has no v is Format::HALF, but for bfloat16
// parameters that have e.
struct Kernels8bit {
  // as in Kernels16bit
  void (*update[kDirections][2])(const UpdateChunk&, int grad_dtype, const Noise&);
  void (*project[2][2])(const RowToProject&, const Noise&);
};

// Of a block that is updated while somebody monitors; see drift.cpp.
struct KernelsOfDrift {
  // y as the update finds it, in the type of the arithmetic, by [Format][parameter dtype]
  void (*read_y[Format::WIDTH][DType::WIDTH])(const void* y, const void* param, std::int64_t numel, void* to);
  // the gradient, by [state dtype][gradient dtype]; the second argument is not used
  void (*read_grad[2][DType::WIDTH])(const void* grad, const void*, std::int64_t numel, void* to);
  // adds the block's sums to sums[Drift::WIDTH], by [state dtype]
  void (*add[2])(const void* before, const void* after, const void* grad, std::int64_t numel, double* sums);
};

}  // namespace sfplus
