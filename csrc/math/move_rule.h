// What interpolate does to one element; see Move in sfplus_kernels/contract/layout.py and docs/algorithm.md.
#pragma once

#include "config.h"
#include "follow_rule.h"
#include "layout.h"
#include "rounding.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

template <class T>
struct MoveCoefs {
  T e_to_y, e_to_x;  // what of e is added to y, and to y to find x
  T omega;           // decay at y
  T e_kept;          // 1 - c_k
};

// Coefficients of one tensor, formed in double and rounded once. Rows as in layout.h.
template <class T>
SFPLUS_INLINE MoveCoefs<T> move_coefs(int move, const double* globals, const double* hyper,
                                      const double* group_coefs, const double* scalars,
                                      const double* tensor_coefs) {
  const double b = scalars[Scalar::Y_BETA];
  const bool skipped = globals[Global::SKIP] != 0;  // then x stays
  const double e_to_y = move == Move::TO_X    ? -(1 - b)
                        : move == Move::TO_Y  ? 1 - b
                        : move == Move::SHIFT ? tensor_coefs[TensorCoef::E_TO_Y]
                                              : b;
  return {static_cast<T>(e_to_y), static_cast<T>(-(1 - b)),
          static_cast<T>(hyper[Hyper::LR] * hyper[Hyper::WEIGHT_DECAY]),
          static_cast<T>(skipped ? 1.0 : group_coefs[GroupCoef::E_KEPT])};
}

// y as it is in memory (z in ABSORB_Z), e likewise (x in ABSORB_Z).
template <int move, class T>
SFPLUS_INLINE void move_element(T& y, T& e, const MoveCoefs<T>& c) {
  if (move == Move::EXPOSE_Z) {
    const T x = y + rounded_product(c.e_to_x, e);
    y = y + (rounded_product(c.e_to_y, e) - rounded_product(c.omega, y));
    e = x;
  } else if (move == Move::ABSORB_Z) {
    e = c.e_kept * (y - e);
    y = y - rounded_product(c.e_to_y, e);
  } else {
    y = y + rounded_product(c.e_to_y, e);
  }
}

// As `move_element`, where a parameter follows y: y has what was written to the parameter, and the parameter becomes
// the result. That of TO_X is x, and y stays.
template <int move, class T, class Param>
SFPLUS_INLINE Param move_follower(T& y, T& e, Param param, const MoveCoefs<T>& c) {
  if (move == Move::TO_Y) {
    y = y_or_written_as_x(y, e, c.e_to_y, param);
    return narrow<Param>(y);
  }
  if (move == Move::ABSORB_Z) {  // what happened to the rounding of z
    y = y + (widen<T>(param) - widen<T>(narrow<Param>(y)));
  } else {
    y = y_or_written(y, param);
  }
  T moved = y;
  move_element<move>(moved, e, c);
  if (move != Move::TO_X) y = moved;
  return narrow<Param>(moved);
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
