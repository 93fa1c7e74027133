// A parameter that is coarser than y follows it: it is the rounding of y, or, after TO_X, of x. Where it is anything
// else, somebody has written to it since, by whatever way, and what was written wins.
#pragma once

#include "config.h"
#include "dtypes.h"
#include "rounding.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

SFPLUS_INLINE bool same(bfloat16 a, bfloat16 b) { return a.bits == b.bits; }
SFPLUS_INLINE bool same(float16 a, float16 b) { return a.bits == b.bits; }

// y of a parameter that was left as the rounding of y.
template <class T, class Param>
SFPLUS_INLINE T y_or_written(T y, Param param) {
  return same(param, narrow<Param>(y)) ? y : widen<T>(param);
}

// y of a parameter that was left as the rounding of x. `e_to_y` is 1 - b.
template <class T, class Param>
SFPLUS_INLINE T y_or_written_as_x(T y, T e, T e_to_y, Param param) {
  const T x = y + rounded_product(-e_to_y, e);  // as TO_X forms it
  return same(param, narrow<Param>(x)) ? y : widen<T>(param) + rounded_product(e_to_y, e);
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
