// The machine code that was built in: see cmake/cuda.cmake.
#pragma once

#include <cstddef>

namespace sfplus {
namespace cuda {

// Code for one architecture: "sm_90", or "compute_90" for PTX. It is a part of what an xz-compressed stream
// unpacks to, which is that of other architectures too.
struct Image {
  const char* architecture;
  const char *begin, *end;  // of the stream
  std::size_t first, size;  // in bytes, unpacked
};
extern const Image kImages[];
extern const std::size_t kImageCount;
extern const char kCompiler[];  // "NVRTC 12.9"

}  // namespace cuda
}  // namespace sfplus
