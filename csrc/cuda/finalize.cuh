// Sums, loss and run state -> coefficients, in two launches: one block for what all tensors share, then a
// thread for each tensor. The same steps as csrc/cpu/finalize.cpp.
#pragma once

#include <cmath>

#include "../math/run_rule.h"
#include "block_sum.cuh"

namespace sfplus {
namespace cuda {

constexpr int kFinalizeWarps = 8;
constexpr int kFinalizeThreads = kLanes * kFinalizeWarps;

// Global figures and everything per group, or the mark of a skipped step. What a thread reads may be what
// another one writes: it is read before the barrier, and written after it.
__global__ void __launch_bounds__(kFinalizeThreads)
    finalize_kernel(const double* partials, const std::int64_t n_partials, const Run run,
                    const double max_coefficient) {
  double sums[Sum::WIDTH] = {};
  for (std::int64_t slot = threadIdx.x; slot < n_partials; slot += kFinalizeThreads) {
    for (int column = 0; column < Sum::WIDTH; ++column) {
      sums[column] += partials[slot * Sum::WIDTH + column];
    }
  }
  block_sum<kFinalizeWarps>(sums);

  double* globals = run.globals;
  const double factor = true_sums(run.settings, globals, sums);
  const double k = run.groups[Group::K];  // of the first group, as in the paper's one group
  const double beta = momentum(run.settings, run.hyper[Hyper::SF_BETA1], k);
  const PolyakStep polyak = polyak_step(sums, run.settings, globals, beta, k);

  bool bad = !std::isfinite(globals[Global::FUNCTION_VALUE]) || globals[Global::FOUND_INF] != 0;
  for (int column = 0; column < Sum::WIDTH; ++column) bad = bad || !std::isfinite(sums[column]);
  for (std::int64_t i = threadIdx.x; i < run.n_groups; i += kFinalizeThreads) {
    const GroupStep step = group_step(run.hyper + i * Hyper::WIDTH, run.settings,
                                      run.groups + i * Group::WIDTH, polyak.polyak_lr);
    // written so that NaN is out of range
    bad = bad || !(step.gamma <= max_coefficient && step.omega <= max_coefficient &&
                   std::isfinite(step.weight_sum));
  }
  const bool skip = __syncthreads_or(bad) != 0;  // the barrier

  if (threadIdx.x == 0) {
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
  if (skip) return;
  for (std::int64_t i = threadIdx.x; i < run.n_groups; i += kFinalizeThreads) {
    const double* hyper = run.hyper + i * Hyper::WIDTH;
    double* group = run.groups + i * Group::WIDTH;
    const GroupStep step = group_step(hyper, run.settings, group, polyak.polyak_lr);
    const double group_beta = momentum(run.settings, hyper[Hyper::SF_BETA1], k);
    write_group_coefs(hyper, step, run.settings[Setting::GRAD_SIGN], factor, group_beta,
                      run.group_coefs + i * GroupCoef::WIDTH);
    group[Group::K] += 1;
    group[Group::LR_MAX] = step.lr_max;
    group[Group::WEIGHT_SUM] = step.weight_sum;
    group[Group::CKP1] = step.c;
    group[Group::SCHEDULED_LR] = step.gamma;
    group[Group::Y_BETA] = group_beta;
    group[Group::ADAPTIVE] = step.adaptive ? 1 : 0;
  }
}

__global__ void __launch_bounds__(kThreads)
    finalize_tensors_kernel(const std::int64_t* rows, const std::int64_t n_rows, const Run run) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n_rows || run.globals[Global::SKIP] != 0) return;
  const std::int64_t* row = rows + i * Row::WIDTH;
  advance_tensor(run.hyper + row[Row::GROUP] * Hyper::WIDTH, run.settings,
                 run.groups + row[Row::GROUP] * Group::WIDTH, run.tensors + row[Row::SLOT] * Scalar::WIDTH,
                 run.tensor_coefs + row[Row::SLOT] * TensorCoef::WIDTH);
}

}  // namespace cuda
}  // namespace sfplus
