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

// What is beside the parameter, as a lower half: all of its bits, or the upper 8.
SFPLUS_INLINE std::uint16_t lower_half(std::uint16_t lower) { return lower; }
SFPLUS_INLINE std::uint16_t lower_half(std::uint8_t lower) { return static_cast<std::uint16_t>(lower << 8); }

// A zero that was written over the parameter is one, whatever is beside it.
SFPLUS_INLINE float join(SplitFloat y) {
  const bool written = (y.upper.bits & 0x7FFFu) == 0 && y.lower >= 0x8000u;
  const std::uint32_t lower = (y.lower ^ 0x8000u) - 0x8000u;  // counts from -32768
  return float_of((static_cast<std::uint32_t>(y.upper.bits) << 16) + (written ? 0u : lower));
}

SFPLUS_INLINE SplitFloat split_bits(std::uint32_t bits) {
  return {{static_cast<std::uint16_t>((bits + 0x8000u) >> 16)}, static_cast<std::uint16_t>(bits)};
}

SFPLUS_INLINE std::uint32_t bits_or_nan(float y) {
  const bool is_nan = (bits_of(y) & 0x7FFFFFFFu) > 0x7F800000u;
  return is_nan ? 0x7FC00000u : bits_of(y);
}

SFPLUS_INLINE SplitFloat split(float y) { return split_bits(bits_or_nan(y)); }

// y in 24 bits. ``added`` is from 0 to 255: a random number of them rounds so that the mean is right, and 128 to nearest.
SFPLUS_INLINE float to_24_bits(float y, std::uint32_t added) {
  return float_of((bits_or_nan(y) + added) & ~0xFFu);
}

// The same with 8 bits beside the parameter: the upper ones of the lower half.
SFPLUS_INLINE SplitFloat split_to_24_bits(float y, std::uint32_t added) {
  return split_bits(bits_of(to_24_bits(y, added)));
}

constexpr std::uint32_t kToNearest24 = 0x80;

// y, and with it the parameter, after the parameter was the rounding of x = y - (1 - b) e; ``by_e`` is (1 - b) e, rounded.
// Where the parameter is anything else, it was written to, and that wins. ``Lower`` is what is beside the parameter.
template <class Lower>
SFPLUS_INLINE SplitFloat split_y_of_x(SplitFloat y, float by_e, bfloat16 param) {
  const bool untouched = param.bits == narrow<bfloat16>(join(y) - by_e).bits;
  const float moved = widen<float>(param) + by_e;
  const SplitFloat written = sizeof(Lower) == 2 ? split(moved) : split_to_24_bits(moved, kToNearest24);
  return {{untouched ? y.upper.bits : written.upper.bits}, untouched ? y.lower : written.lower};
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
