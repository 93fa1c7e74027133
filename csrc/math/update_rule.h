// What happens to one element. The coefficients come from run_rule.h, already in the type of the
// arithmetic; the equations are in docs/algorithm.md.
#pragma once

#include <cmath>

#include "config.h"
#include "directions.h"
#include "layout.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

template <class T>
struct UpdateCoefs {
  T beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y, m_to_u, grad_to_u;  // of the group
  T step_size, inv_sqrt_bc2, e_to_y, grad_share;                                            // of the tensor
};

// Rows of group_coefs and tensor_coefs: formed in double, rounded once.
template <class T>
SFPLUS_INLINE UpdateCoefs<T> update_coefs(const double* group, const double* tensor) {
  return {static_cast<T>(group[GroupCoef::BETA1]),      static_cast<T>(group[GroupCoef::GRAD_TO_M]),
          static_cast<T>(group[GroupCoef::BETA2]),      static_cast<T>(group[GroupCoef::GRAD_TO_V]),
          static_cast<T>(group[GroupCoef::EPS]),        static_cast<T>(group[GroupCoef::OMEGA]),
          static_cast<T>(group[GroupCoef::E_KEPT]),     static_cast<T>(group[GroupCoef::DELTA_TO_Y]),
          static_cast<T>(group[GroupCoef::M_TO_U]),     static_cast<T>(group[GroupCoef::GRAD_TO_U]),
          static_cast<T>(tensor[TensorCoef::STEP_SIZE]),
          static_cast<T>(tensor[TensorCoef::INV_SQRT_BC2]),
          static_cast<T>(tensor[TensorCoef::E_TO_Y]),     static_cast<T>(tensor[TensorCoef::GRAD_SHARE])};
}

// Of T, which may be a vector of values: see csrc/cpu/lanes.h.
template <class T>
struct Root {
  static SFPLUS_INLINE T of(T x) { return std::sqrt(x); }
};

template <Direction direction, class T, class Coef>
SFPLUS_INLINE void update_element(T g, T& m, T& v, T& y, T& e, const UpdateCoefs<Coef>& c) {
  if constexpr (direction == Direction::PLAIN_MOMENTUM) {  // the decay is part of the gradient
    const T decayed = c.grad_to_m * g + c.omega * y;
    m = c.beta1 * m + c.grad_share * decayed;
    y = y + c.delta_to_y * (c.step_size * (c.m_to_u * m + c.grad_to_u * decayed));
    return;
  }
  // moments
  constexpr bool kHasM = keeps_m(direction), kHasV = keeps_v(direction);
  m = kHasM ? c.beta1 * m + c.grad_to_m * g : c.grad_to_m * g;
  if (kHasV) v = c.beta2 * v + c.grad_to_v * g * g;
  // delta = gamma u + omega y, with u = m_hat / (sqrt(v_hat) + eps), or the gradient
  T delta = c.step_size * m;
  if (kHasV) delta = delta / (Root<T>::of(v) * c.inv_sqrt_bc2 + c.eps);
  delta = delta + c.omega * y;
  if constexpr (!averages(direction)) {
    y = y + c.delta_to_y * delta;
    return;
  }
  // one increment of y, its two parts summed first
  y = y + (c.e_to_y * e + c.delta_to_y * delta);
  // z moves by -delta, then x follows it by c_k
  e = c.e_kept * (e - delta);
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
