// Arithmetic that is rounded the same way by every compiler.
#pragma once

#include "config.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

// a b, rounded before anything is added to it: where the compiler would make one instruction of the two, this
// forbids it. What eval() makes of y and e is then what plain torch operations make of them, to the bit.
#if defined(__CUDA_ARCH__) || defined(SFPLUS_STAND_IN)
SFPLUS_INLINE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
SFPLUS_INLINE double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#else
SFPLUS_INLINE float rounded_product(float a, float b) { return a * b; }
SFPLUS_INLINE double rounded_product(double a, double b) { return a * b; }
#endif

}  // namespace SFPLUS_ISA
}  // namespace sfplus
