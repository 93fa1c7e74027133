// What is kept of a tensor says which direction its step takes. A constant for each set: kernels are compiled for one.
#pragma once

#include "config.h"

namespace sfplus {

// The direction u: ADAM keeps both moments, ADAM_NO_MOMENTUM the second only, SGD none, MOMENTUM the first only. Those
// that are PLAIN average nothing and keep no e: y is all that there is of a weight.
enum class Direction { ADAM, ADAM_NO_MOMENTUM, SGD, PLAIN_ADAM, PLAIN_SGD, PLAIN_MOMENTUM };

constexpr int kAveragingDirections = 3;  // the first ones
constexpr int kDirections = 6;

SFPLUS_INLINE constexpr bool averages(Direction direction) {
  return static_cast<int>(direction) < kAveragingDirections;
}

SFPLUS_INLINE constexpr bool keeps_m(Direction direction) {
  return direction == Direction::ADAM || direction == Direction::PLAIN_ADAM || direction == Direction::PLAIN_MOMENTUM;
}

SFPLUS_INLINE constexpr bool keeps_v(Direction direction) {
  return direction == Direction::ADAM || direction == Direction::ADAM_NO_MOMENTUM || direction == Direction::PLAIN_ADAM;
}

// By what is kept of a tensor. Nobody averages with the first moment alone, or has the second alone without averaging.
inline Direction direction_of(bool has_m, bool has_v, bool has_e) {
  if (has_e) return has_m ? Direction::ADAM : has_v ? Direction::ADAM_NO_MOMENTUM : Direction::SGD;
  return has_v ? Direction::PLAIN_ADAM : has_m ? Direction::PLAIN_MOMENTUM : Direction::PLAIN_SGD;
}

}  // namespace sfplus
