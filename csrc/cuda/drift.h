// The shared memory of a launch where somebody monitors drift; the same on the host and on the device.
#pragma once

#include "threads.h"

namespace sfplus {
namespace cuda {

constexpr int kDriftWords = 4;  // of 16 bytes, for each thread: see drift.cuh
constexpr unsigned kDriftBytes = kThreads * kDriftWords * 16;

}  // namespace cuda
}  // namespace sfplus
