#pragma once

#include <cstdint>
#include <vector>

namespace sfplus {

// Of a tensor all that an access to its memory goes by. `shape` and `strides` are good until the next tensor is read.
struct Facts {
  std::int64_t dtype, device, ndim;  // numbers that are equal for equal ones
  const std::int64_t *shape, *strides;
  std::intptr_t data;           // of its first element
  std::int64_t bytes, offset;   // of the whole storage; elements from its beginning to the first one
  std::vector<std::int64_t> own;  // where torch has no memory that holds shape and strides

  std::int64_t numel() const {
    std::int64_t product = 1;
    for (std::int64_t i = 0; i < ndim; ++i) product *= shape[i];
    return product;
  }
};

}  // namespace sfplus
