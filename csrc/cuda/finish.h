// What the block that finishes a step is told; the same on the host and on the device.
#pragma once

#include <cstdint>

#include "../table.h"

namespace sfplus {
namespace cuda {

struct Finish {
  const double* partials;  // (n_partials, Sum::WIDTH), of all launches
  std::int64_t n_partials;
  const std::int64_t* rows;  // (n_rows, Row::WIDTH)
  std::int64_t n_rows;       // 0 where finalize_tensors follows
  Run run;
  const void* loss;  // one number of loss_dtype, or null: it is in the run state already
  int loss_dtype;
  double max_coefficient;
  unsigned* tickets;  // (3,) zeros before and after a kernel; null where the kernel does not finish the step
};

}  // namespace cuda
}  // namespace sfplus
