// The memory that every pass walks; the tables are made by sfplus_kernels/backends/table.py, and the columns of
// every pointer are those of math/layout.h.
#pragma once

#include <cstdint>

namespace sfplus {

struct Table {
  const std::int64_t* rows;       // (n_rows, Row::WIDTH)
  const std::int64_t* gradients;  // (n_rows,) addresses; unused by interpolate
  const std::int64_t* chunks;     // (n_chunks, Chunk::WIDTH), of this launch only
  std::int64_t n_chunks;
  std::int64_t chunk_size;  // elements; 0 where each chunk is a row of its tensor, Row::ROW_LENGTH of them
  std::int64_t n_elements;  // in all chunks
  double* drift;            // (n_chunks, Drift::WIDTH): sums of each chunk, by update; null where nobody monitors
};

struct Run {
  double* globals;
  double* groups;         // (n_groups, Group::WIDTH)
  double* tensors;        // (n_params, Scalar::WIDTH)
  const double* hyper;    // (n_groups, Hyper::WIDTH)
  const double* settings;
  double* group_coefs;    // (n_groups, GroupCoef::WIDTH)
  double* tensor_coefs;   // (n_params, TensorCoef::WIDTH)
  std::int64_t n_groups;
};

}  // namespace sfplus
