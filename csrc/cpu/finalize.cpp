#include <algorithm>
#include <cmath>

#include "../math/run_rule.h"
#include "passes.h"

namespace sfplus {

void finalize(const double* partials, std::int64_t n_partials, const std::int64_t* rows,
              std::int64_t n_rows, const Run& run, double max_coefficient) {
  double sums[Sum::WIDTH] = {};
  for (std::int64_t slot = 0; slot < n_partials; ++slot) {
    for (int column = 0; column < Sum::WIDTH; ++column) {
      sums[column] += partials[slot * Sum::WIDTH + column];
    }
  }
  double* globals = run.globals;
  const double factor = true_sums(run.settings, globals, sums);
  const double k = run.groups[Group::K];  // of the first group, as in the paper's one group
  const double beta = momentum(run.settings, run.hyper[Hyper::SF_BETA1], k);
  const PolyakStep polyak = polyak_step(sums, run.settings, globals, beta, k);

  bool skip = !std::isfinite(globals[Global::FUNCTION_VALUE]) || globals[Global::FOUND_INF] != 0;
  for (const double sum : sums) skip = skip || !std::isfinite(sum);
  for (std::int64_t i = 0; i < run.n_groups; ++i) {
    const GroupStep step = group_step(run.hyper + i * Hyper::WIDTH, run.settings,
                                      run.groups + i * Group::WIDTH, polyak.polyak_lr);
    // written so that NaN is out of range
    skip = skip || !(step.gamma <= max_coefficient && step.omega <= max_coefficient &&
                     std::isfinite(step.weight_sum));
  }

  globals[Global::GRAD_L1] = sums[Sum::GRAD_L1];
  globals[Global::GRAD_NORM] = std::sqrt(sums[Sum::GRAD_SQ]);
  globals[Global::IP_TERM] = polyak.ip_term;
  globals[Global::SKIP] = skip ? 1 : 0;
  if (skip) {
    globals[Global::SKIPPED_STEPS] += 1;
    globals[Global::CONSECUTIVE_SKIPPED_STEPS] += 1;
    return;
  }
  globals[Global::CONSECUTIVE_SKIPPED_STEPS] = 0;
  globals[Global::GRAD_L1_EMA] = polyak.ema;
  globals[Global::POLYAK_LR] = polyak.polyak_lr;
  globals[Global::SF_BETA1] = beta;

  for (std::int64_t i = 0; i < run.n_groups; ++i) {
    const double* hyper = run.hyper + i * Hyper::WIDTH;
    double* group = run.groups + i * Group::WIDTH;
    const GroupStep step = group_step(hyper, run.settings, group, polyak.polyak_lr);
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
  // Most tensors have been through as many steps as the one before: then all is the same, powers included.
  std::int64_t group_before = -1, slot_before = 0;
  double step_before = 0, beta_before = 0;
  for (std::int64_t i = 0; i < n_rows; ++i) {
    const std::int64_t group = rows[i * Row::WIDTH + Row::GROUP], slot = rows[i * Row::WIDTH + Row::SLOT];
    double* scalars = run.tensors + slot * Scalar::WIDTH;
    double* coefs = run.tensor_coefs + slot * TensorCoef::WIDTH;
    const double step = scalars[Scalar::STEP], y_beta = scalars[Scalar::Y_BETA];
    if (group == group_before && step == step_before && y_beta == beta_before) {
      std::copy_n(run.tensors + slot_before * Scalar::WIDTH, +Scalar::WIDTH, scalars);
      std::copy_n(run.tensor_coefs + slot_before * TensorCoef::WIDTH, +TensorCoef::WIDTH, coefs);
      continue;
    }
    group_before = group, slot_before = slot, step_before = step, beta_before = y_beta;
    advance_tensor(run.hyper + group * Hyper::WIDTH, run.settings, run.groups + group * Group::WIDTH, scalars, coefs);
  }
}

}  // namespace sfplus
