// The machine code that was built in: see cmake/cuda.cmake.
#pragma once

#include <cstddef>

namespace sfplus {
namespace cuda {

// xz-compressed, for one architecture: "sm_90", or "compute_90" for PTX.
struct Image {
  const char* architecture;
  const char *begin, *end;
};
extern const Image kImages[];
extern const std::size_t kImageCount;
extern const char kCompiler[];  // "NVRTC 12.9"

}  // namespace cuda
}  // namespace sfplus
