// What turns sums, loss and run state into the step's coefficients: the same steps as csrc/cpu/finalize.cpp, by the
// threads of one block. Either finalize does it, or the last block of reduce, or the first one of update.
#pragma once

#include <cmath>

#include "../math/dtypes.h"
#include "../math/run_rule.h"
#include "block_sum.cuh"
#include "finish.h"
#include "order.cuh"

namespace sfplus {
namespace cuda {

__device__ __forceinline__ double read_loss(const Finish& finish) {
  const void* loss = finish.loss;
  switch (finish.loss_dtype) {
    case DType::FLOAT64:
      return *static_cast<const double*>(loss);
    case DType::FLOAT32:
      return *static_cast<const float*>(loss);
    case DType::BFLOAT16:
      return widen<double>(*static_cast<const bfloat16*>(loss));
    default:
      return widen<double>(*static_cast<const float16*>(loss));
  }
}

// Global figures and everything per group, or the mark of a skipped step: by one warp, so that a GPU with few
// double-precision units does not do all of it several times. Returns whether the step is skipped. Without sums there
// is neither a Polyak step nor a norm.
template <bool has_sums>
__device__ __forceinline__ bool finish_groups(const Finish& finish, double (&sums)[Sum::WIDTH], int lane) {
  const Run& run = finish.run;
  double* globals = run.globals;
  if (finish.loss != nullptr) {
    const double loss = read_loss(finish);
    if (lane == 0) globals[Global::FUNCTION_VALUE] = loss;
    __syncwarp();
  }
  const double factor = true_sums(run.settings, globals, sums);
  const double k = run.groups[Group::K];  // of the first group, as in the paper's one group
  const double beta = momentum(run.settings, run.hyper[Hyper::SF_BETA1], k);
  PolyakStep polyak = {0, globals[Global::GRAD_L1_EMA], 1};
  if constexpr (has_sums) polyak = polyak_step(sums, run.settings, globals, beta, k);

  bool bad = !std::isfinite(globals[Global::FUNCTION_VALUE]) || globals[Global::FOUND_INF] != 0;
  for (int column = 0; column < Sum::WIDTH; ++column) bad = bad || !std::isfinite(sums[column]);
  GroupStep step = {};
  for (std::int64_t i = lane; i < run.n_groups; i += kLanes) {
    step = group_step(run.hyper + i * Hyper::WIDTH, run.settings, run.groups + i * Group::WIDTH,
                      polyak.polyak_lr);
    // written so that NaN is out of range
    bad = bad || !(step.gamma <= finish.max_coefficient && step.omega <= finish.max_coefficient &&
                   std::isfinite(step.weight_sum));
  }
  // what a lane has read may be what another one writes: it is read before, and written after
  const bool skip = __any_sync(0xFFFFFFFFu, bad) != 0;
  if (lane == 0) {
    globals[Global::GRAD_L1] = sums[Sum::GRAD_L1];
    globals[Global::GRAD_NORM] = std::sqrt(sums[Sum::GRAD_SQ]);
    globals[Global::IP_TERM] = polyak.ip_term;
    globals[Global::SKIP] = skip ? 1 : 0;
    if (skip) {
      globals[Global::SKIPPED_STEPS] += 1;
      globals[Global::CONSECUTIVE_SKIPPED_STEPS] += 1;
    } else {
      globals[Global::CONSECUTIVE_SKIPPED_STEPS] = 0;
      globals[Global::GRAD_L1_EMA] = polyak.ema;
      globals[Global::POLYAK_LR] = polyak.polyak_lr;
      globals[Global::SF_BETA1] = beta;
    }
  }
  if (skip) return true;
  for (std::int64_t i = lane; i < run.n_groups; i += kLanes) {
    const double* hyper = run.hyper + i * Hyper::WIDTH;
    double* group = run.groups + i * Group::WIDTH;
    if (run.n_groups > kLanes) step = group_step(hyper, run.settings, group, polyak.polyak_lr);
    const double group_beta = momentum(run.settings, hyper[Hyper::SF_BETA1], k);
    write_group_coefs(hyper, run.settings, step, factor, group_beta, run.group_coefs + i * GroupCoef::WIDTH);
    group[Group::K] += 1;
    group[Group::LR_MAX] = step.lr_max;
    group[Group::WEIGHT_SUM] = step.weight_sum;
    group[Group::CKP1] = step.c;
    group[Group::SCHEDULED_LR] = step.gamma;
    group[Group::Y_BETA] = group_beta;
    group[Group::ADAPTIVE] = step.adaptive ? 1 : 0;
  }
  return false;
}

__device__ __forceinline__ void finish_tensor(const Finish& finish, std::int64_t i) {
  const Run& run = finish.run;
  const std::int64_t* row = finish.rows + i * Row::WIDTH;
  advance_tensor(run.hyper + row[Row::GROUP] * Hyper::WIDTH, run.settings,
                 run.groups + row[Row::GROUP] * Group::WIDTH, run.tensors + row[Row::SLOT] * Scalar::WIDTH,
                 run.tensor_coefs + row[Row::SLOT] * TensorCoef::WIDTH);
}

// All of it, by a block of kThreads. The partial sums may have been written by other blocks of this kernel: they are
// read past the multiprocessor's own cache.
template <bool has_sums>
__device__ __forceinline__ void finish_step(const Finish& finish) {
  double sums[Sum::WIDTH] = {};
  if constexpr (has_sums) {
    for (std::int64_t slot = threadIdx.x; slot < finish.n_partials; slot += kThreads) {
      for (int column = 0; column < Sum::WIDTH; ++column) {
        sums[column] += __ldcg(finish.partials + slot * Sum::WIDTH + column);
      }
    }
    block_sum<kWarps>(sums);
  }
  __shared__ int skipped;
  if (threadIdx.x < kLanes) {
    const bool skip = finish_groups<has_sums>(finish, sums, threadIdx.x);
    if (threadIdx.x == 0) skipped = skip ? 1 : 0;
  }
  __syncthreads();
  if (skipped != 0) return;
  for (std::int64_t i = threadIdx.x; i < finish.n_rows; i += kThreads) finish_tensor(finish, i);
}

// The block that draws the last ticket finishes the step: every block's partial sums are there then. To be called by
// all threads of all blocks of a kernel, at its end.
__device__ __forceinline__ void finish_last(const Finish& finish) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();  // the sums before the ticket
    last = atomicInc(finish.tickets, gridDim.x - 1) == gridDim.x - 1;  // and back to 0, for the next step
    __threadfence();
  }
  __syncthreads();
  if (last) finish_step<true>(finish);
}

// The block that draws the first ticket finishes the step, and the others wait for it: it is running already, so
// it never waits for a place that they hold. To be called by all threads of all blocks, before the coefficients are
// read. The last block that has seen the mark takes it away, for the next step.
__device__ __forceinline__ void finish_first(const Finish& finish) {
  __shared__ bool first;
  volatile unsigned* done = finish.tickets + 1;
  if (threadIdx.x == 0) first = atomicInc(finish.tickets, gridDim.x - 1) == 0;
  __syncthreads();
  if (first) {
    finish_step<false>(finish);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    if (first) {
      __threadfence();  // the coefficients before the mark
      *done = 1;
    } else {
      while (*done == 0) pause_a_little();
    }
    __threadfence();
    if (atomicInc(finish.tickets + 2, gridDim.x - 1) == gridDim.x - 1) *done = 0;
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace sfplus
