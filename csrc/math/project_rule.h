// What brings the rows of z to a fixed norm, after the step of their elements; see docs/algorithm.md. What a row has too
// much of z is taken off as if delta had been so much more: then y and e stay those of one average.
#pragma once

#include <cmath>

#include "config.h"
#include "layout.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

template <class T>
struct ProjectCoefs {
  T e_to_z, delta_to_y, e_kept;
};

// Rows of the group's: beta of this step, with which y was just written, is that of the group.
template <class T>
SFPLUS_INLINE ProjectCoefs<T> project_coefs(const double* group, const double* group_coefs) {
  return {static_cast<T>(group[Group::Y_BETA]), static_cast<T>(group_coefs[GroupCoef::DELTA_TO_Y]),
          static_cast<T>(group_coefs[GroupCoef::E_KEPT])};
}

// The part of a row that is too much, of the sum of its squares: below 0 where the row is too short. A row of zeros stays.
SFPLUS_INLINE double excess_of_row(double squares, double row_norm) {
  return squares > 0 ? 1 - row_norm / std::sqrt(squares) : 0.0;
}

// T may be a vector of values: see csrc/cpu/lanes.h.
template <bool averages, class T, class Coef>
SFPLUS_INLINE T z_of(T y, T e, const ProjectCoefs<Coef>& c) {
  if constexpr (averages) return y + c.e_to_z * e;
  return y;
}

template <bool averages, class T, class Coef>
SFPLUS_INLINE void project_element(T& y, T& e, Coef excess, const ProjectCoefs<Coef>& c) {
  const T delta = excess * z_of<averages>(y, e, c);
  y = y + c.delta_to_y * delta;
  if (averages) e = e - c.e_kept * delta;
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
