// Blocks of elements in vectors, for the loops over state of fewer than 32 bits.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../math/layout.h"
#include "lanes.h"
#include "loops.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

using L = Lanes<Widest>;

// Elements of a block.
constexpr int kElements = kBlock<float>;
constexpr int kVectors = kElements / L::kCount;

// Of what is beside the parameter: y itself, or the bits of it that a bfloat16 parameter does not have.
template <class Y>
constexpr bool kIsSplit = !std::is_same<Y, float>::value;

// element(i) for the first one of each vector of a block.
template <class Element>
SFPLUS_INLINE void for_each_vector(const Element& element) {
  SFPLUS_INDEPENDENT
  for (int i = 0; i < kElements; i += L::kCount) element(i);
}

template <class Grad>
SFPLUS_INLINE const float* widened(const void* grad, std::int64_t i, float* to) {
  const Grad* from = static_cast<const Grad*>(grad) + i;
  ask_ahead<float>(from, 0);
  for_each_vector([=](int at) { L::write(to + at, L::read(from + at)); });
  return to;
}

// A block of the gradient in float32: where it is, or in ``to``. So the loops need not be compiled once for each dtype
// of the gradient.
SFPLUS_INLINE const float* gradient_block(const void* grad, int dtype, std::int64_t i, float* to) {
  switch (dtype) {
    case DType::FLOAT64:
      for (int at = 0; at < kElements; ++at) to[at] = widen<float>(load(static_cast<const double*>(grad) + i + at));
      return to;
    case DType::FLOAT32:
      ask_ahead<float>(static_cast<const float*>(grad), i);
      return static_cast<const float*>(grad) + i;
    case DType::BFLOAT16:
      return widened<bfloat16>(grad, i, to);
    default:
      return widened<float16>(grad, i, to);
  }
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
