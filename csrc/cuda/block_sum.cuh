// Sums over the threads of a block in a fixed order, so that the same terms give the same bits.
#pragma once

#include "../math/layout.h"
#include "walk.cuh"

namespace sfplus {
namespace cuda {

// On return every thread has the sums over the block's warps. To be called once in a kernel, by all threads.
template <int n_warps>
__device__ __forceinline__ void block_sum(double (&sums)[Sum::WIDTH]) {
  __shared__ double of_warp[n_warps][Sum::WIDTH];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  for (int column = 0; column < Sum::WIDTH; ++column) {
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      sums[column] += __shfl_down_sync(0xFFFFFFFFu, sums[column], distance);
    }
    if (lane == 0) of_warp[warp][column] = sums[column];
  }
  __syncthreads();
  for (int column = 0; column < Sum::WIDTH; ++column) {
    double sum = 0;
    for (int other = 0; other < n_warps; ++other) sum += of_warp[other][column];
    sums[column] = sum;
  }
}

}  // namespace cuda
}  // namespace sfplus
