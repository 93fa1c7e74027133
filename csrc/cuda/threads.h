// The shape of a block, the same in every kernel.
#pragma once

namespace sfplus {
namespace cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 4;  // of a block: small ones fill a multiprocessor's registers best
constexpr int kThreads = kLanes * kWarps;

}  // namespace cuda
}  // namespace sfplus
