// y in two halves: a bfloat16 parameter, and beside it the lower 16 bits of y. The parameter is the nearest bfloat16,
// at a tie the larger in magnitude: a tie that went to the even one could not be undone. Modulo 2^32, so no exponent
// is a special case, and what somebody writes into the parameter is y from then on, to half a last place.
#pragma once

#include <cstdint>

#include "config.h"
#include "dtypes.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

struct SplitFloat {
  bfloat16 upper;
  std::uint16_t lower;
};

// A zero that was written over the parameter is one, whatever is beside it.
SFPLUS_INLINE float join(SplitFloat y) {
  const bool written = (y.upper.bits & 0x7FFFu) == 0 && y.lower >= 0x8000u;
  const std::uint32_t lower = (y.lower ^ 0x8000u) - 0x8000u;  // counts from -32768
  return float_of((static_cast<std::uint32_t>(y.upper.bits) << 16) + (written ? 0u : lower));
}

SFPLUS_INLINE SplitFloat split(float y) {
  const bool is_nan = (bits_of(y) & 0x7FFFFFFFu) > 0x7F800000u;
  const std::uint32_t bits = is_nan ? 0x7FC00000u : bits_of(y);
  return {{static_cast<std::uint16_t>((bits + 0x8000u) >> 16)}, static_cast<std::uint16_t>(bits)};
}

// y, and with it the parameter, after the parameter was the rounding of x = y - (1 - b) e; ``by_e`` is (1 - b) e, rounded.
// Where the parameter is anything else, it was written to, and that wins.
SFPLUS_INLINE SplitFloat split_y_of_x(SplitFloat y, float by_e, bfloat16 param) {
  const bool untouched = param.bits == narrow<bfloat16>(join(y) - by_e).bits;
  const SplitFloat written = split(widen<float>(param) + by_e);
  return {{untouched ? y.upper.bits : written.upper.bits}, untouched ? y.lower : written.lower};
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
