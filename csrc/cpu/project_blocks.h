// What brings the rows of z to a fixed norm, in state of fewer than 32 bits: z is what is stored, and y and e are rounded once
// more. See math/project_rule.h; kernels.cpp has the same for state in full.
#pragma once

#include <cstdint>

#include "../math/project_rule.h"
#include "blocks.h"
#include "kernels.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

// Y is what row.y points at: y, or its lower bits where the parameter is the upper half.
template <bool averages, class Y>
struct StoredRow {
  Y* y;
  bfloat16* upper;
  float16* e;
  ProjectCoefs<float> coefs;

  explicit StoredRow(const RowToProject& row)
      : y(static_cast<Y*>(row.y)),
        upper(static_cast<bfloat16*>(row.param)),
        e(static_cast<float16*>(row.displacement)),
        coefs(project_coefs<float>(row.group, row.group_coefs)) {}

  // V is a float or a vector of them: see lanes.h.
  template <class V>
  SFPLUS_INLINE void read(std::int64_t at, V& y_at, V& e_at) const {
    if constexpr (kIsSplit<Y>) {
      y_at = Lanes<V>::read_split(upper + at, y + at);
    } else {
      y_at = Lanes<V>::read(y + at);
    }
    if constexpr (averages) e_at = Lanes<V>::read(e + at);
  }

  template <class V>
  SFPLUS_INLINE V z(std::int64_t at) const {
    V y_at = {}, e_at = {};
    read(at, y_at, e_at);
    return z_of<averages>(y_at, e_at, coefs);
  }

  // As many running sums as in kernels.cpp, each of the same elements.
  SFPLUS_INLINE float excess(std::int64_t numel, double row_norm) const {
    double lanes[kElements] = {}, squares = 0;
    float block[kElements];
    std::int64_t i = 0;
    for (; i + kElements <= numel; i += kElements) {
      for_each_vector([&](int at) { L::write(block + at, z<Widest>(i + at)); });
      for (int lane = 0; lane < kElements; ++lane) {
        lanes[lane] += static_cast<double>(block[lane]) * static_cast<double>(block[lane]);
      }
    }
    for (int lane = 0; i < numel; ++i, ++lane) {
      const double z_i = static_cast<double>(z<float>(i));
      lanes[lane] += z_i * z_i;
    }
    for (int lane = 0; lane < kElements; ++lane) squares += lanes[lane];
    return static_cast<float>(excess_of_row(squares, row_norm));
  }

  template <class V>
  SFPLUS_INLINE void project(std::int64_t at, float excess, V& y_at, V& e_at) const {
    read(at, y_at, e_at);
    project_element<averages>(y_at, e_at, excess, coefs);
  }
};

}  // namespace SFPLUS_ISA
}  // namespace sfplus
