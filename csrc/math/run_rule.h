// The step's scalars, all in double: sums, loss and run state -> coefficients. The equations are in
// docs/algorithm.md; every pointer names a row with the columns of layout.h.
#pragma once

#include <cmath>

#include "config.h"
#include "layout.h"

namespace sfplus {
inline namespace SFPLUS_ISA {

// beta_k: annealed so that ln(1 - beta) is linear in the step; exactly sf_beta1 without annealing
SFPLUS_INLINE double momentum(const double* settings, double sf_beta1, double k) {
  const double anneal_steps = settings[Setting::SF_BETA1_ANNEAL_STEPS];
  if (!(anneal_steps > 0)) return sf_beta1;
  const double s = k < anneal_steps ? k / anneal_steps : 1.0;
  return 1 - std::exp((1 - s) * std::log1p(-sf_beta1) +
                      s * std::log1p(-settings[Setting::SF_BETA1_MAX]));
}

// What becomes of the gradients in memory, which are GRAD_SCALE CLIP_COEF times those of the loss: ``sums``
// become those of the loss's own, and the returned factor unscales and clips what the moments see.
SFPLUS_INLINE double true_sums(const double* settings, const double* globals, double* sums) {
  const double scale = globals[Global::GRAD_SCALE], max_norm = settings[Setting::MAX_GRAD_NORM];
  const double inverse = 1 / (scale * globals[Global::CLIP_COEF]);
  sums[Sum::GRAD_L1] *= inverse;
  sums[Sum::GRAD_DOT_E] *= inverse;
  sums[Sum::GRAD_SQ] *= inverse * inverse;
  double factor = 1 / scale;
  if (max_norm > 0) {  // as torch.nn.utils.clip_grad_norm_
    const double clip = max_norm / (std::sqrt(sums[Sum::GRAD_SQ]) + 1e-6);
    if (clip < 1) factor *= clip;
  }
  return factor;
}

struct PolyakStep {
  double ip_term, ema, polyak_lr;
};

// beta and k are those of the first group. Comparisons are written so that a NaN goes through them and is
// found by the caller.
SFPLUS_INLINE PolyakStep polyak_step(const double* sums, const double* settings,
                                     const double* globals, double beta, double k) {
  const double sqrt_half_pi = 1.2533141373155002512;
  const double sign = settings[Setting::GRAD_SIGN];
  const double polyak_beta = settings[Setting::POLYAK_BETA];
  PolyakStep step;
  step.ip_term = sign * beta * sums[Sum::GRAD_DOT_E];
  step.ema = polyak_beta * globals[Global::GRAD_L1_EMA] +
             (1 - polyak_beta) * sqrt_half_pi * sums[Sum::GRAD_L1];
  const double denominator = step.ema / (1 - std::pow(polyak_beta, k + 1));
  const double gap =
      sign * (globals[Global::FUNCTION_VALUE] - settings[Setting::F_STAR]) + step.ip_term;
  const double numerator = gap < 0 ? 0.0 : gap;
  step.polyak_lr = denominator > 0 ? numerator / denominator : 0.0;  // every gradient is zero
  if (settings[Setting::RULE] != Rule::POLYAK) step.polyak_lr = 1;
  return step;
}

// RAdam's rectification of the step size, or 0 where the moving average of v is still too short to use.
SFPLUS_INLINE double rectification(double beta2, double step) {
  const double beta2_t = std::pow(beta2, step);
  const double rho_inf = 2 / (1 - beta2) - 1;
  const double rho_t = rho_inf - 2 * step * beta2_t / (1 - beta2_t);
  if (!(rho_t > 4)) return 0;
  return std::sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t));
}

struct GroupStep {
  double gamma, lr_max, weight_sum, c, omega;
  bool adaptive;  // u is divided by sqrt(v)
};

SFPLUS_INLINE GroupStep group_step(const double* hyper, const double* settings, const double* group,
                                   double polyak_lr) {
  const bool polyak = settings[Setting::RULE] == Rule::POLYAK;
  const double k = group[Group::K];
  const double lr = hyper[Hyper::LR], eps = hyper[Hyper::EPS];
  const double warmup_steps = hyper[Hyper::WARMUP_STEPS];
  const double warmup = k + 1 < warmup_steps ? (k + 1) / warmup_steps : 1.0;
  GroupStep step;
  double factor = 1;
  step.adaptive = true;
  if (settings[Setting::RULE] == Rule::PAPER) {
    factor = std::sqrt(1 - std::pow(hyper[Hyper::BETA2], k + 1));
  } else if (settings[Setting::RULE] == Rule::RECTIFIED) {
    factor = rectification(hyper[Hyper::BETA2], k + 1);
    step.adaptive = factor > 0;
    if (!step.adaptive) factor = 1 - hyper[Hyper::SILENT_SGD_PHASE];
  }
  step.gamma = (polyak && lr < eps ? eps : lr) * warmup * polyak_lr * factor;
  // written so that a NaN stays one
  const double cap = hyper[Hyper::MAX_LR] * warmup;
  if (cap > 0 && step.gamma > cap) step.gamma = cap;
  step.lr_max = step.gamma > group[Group::LR_MAX] ? step.gamma : group[Group::LR_MAX];
  step.weight_sum = group[Group::WEIGHT_SUM];
  step.c = 1;
  if (!(k < hyper[Hyper::C_WARMUP])) {
    const double weight = std::pow(k + 1, hyper[Hyper::R]) *
                          std::pow(step.lr_max, hyper[Hyper::WEIGHT_LR_POWER]);
    step.weight_sum += weight;
    step.c = step.weight_sum > 0 ? weight / step.weight_sum : 0.0;
    const double c_factor = hyper[Hyper::C_FACTOR];
    if (c_factor > 0) step.c = step.c * c_factor < 1 ? step.c * c_factor : 1.0;
  }
  double decay = hyper[Hyper::WEIGHT_DECAY];
  if (hyper[Hyper::DECAY_PEAK] != 0) {
    const double peak = hyper[Hyper::DECAY_PEAK] > 0 ? hyper[Hyper::DECAY_PEAK] : step.lr_max;
    decay *= peak > 0 ? step.gamma / peak : 0.0;
  }
  // of SGD's momentum the decay is part of the gradient, which gamma is multiplied with later
  const bool in_gradient = settings[Setting::RULE] == Rule::MOMENTUM && hyper[Hyper::BETA1] > 0;
  step.omega = (polyak ? step.gamma * step.gamma : in_gradient ? 1.0 : step.gamma) * decay;
  return step;
}

// ``factor`` is that of true_sums.
SFPLUS_INLINE void write_group_coefs(const double* hyper, const double* settings, const GroupStep& step,
                                     double factor, double beta, double* coefs) {
  const double beta1 = hyper[Hyper::BETA1], beta2 = hyper[Hyper::BETA2], sign = settings[Setting::GRAD_SIGN];
  const bool momentum = settings[Setting::RULE] == Rule::MOMENTUM, nesterov = hyper[Hyper::NESTEROV] != 0;
  coefs[GroupCoef::BETA1] = beta1;
  const double direction = hyper[Hyper::ASCENDS] != 0 ? -sign : sign;
  coefs[GroupCoef::GRAD_TO_M] = direction * (momentum ? 1.0 : 1 - beta1) * factor;
  coefs[GroupCoef::BETA2] = beta2;
  coefs[GroupCoef::GRAD_TO_V] = (1 - beta2) * factor * factor;
  coefs[GroupCoef::EPS] = step.adaptive ? hyper[Hyper::EPS] : 1;
  coefs[GroupCoef::OMEGA] = step.omega;
  coefs[GroupCoef::E_KEPT] = 1 - step.c;
  coefs[GroupCoef::DELTA_TO_Y] = -(1 - beta * (1 - step.c));
  coefs[GroupCoef::M_TO_U] = nesterov ? beta1 : 1;
  coefs[GroupCoef::GRAD_TO_U] = nesterov ? 1 : 0;
}

// Bias corrections with the tensor's own step count; y was last written with b, now with beta_k. ``group`` is
// the group's row after this step.
SFPLUS_INLINE void advance_tensor(const double* hyper, const double* settings, const double* group,
                                  double* scalars, double* coefs) {
  const double step = scalars[Scalar::STEP] + 1, beta = group[Group::Y_BETA];
  const bool corrected = settings[Setting::RULE] != Rule::PAPER;
  const double bc2 = corrected ? 1 - std::pow(hyper[Hyper::BETA2], step) : 1.0;
  const double bc1 = settings[Setting::RULE] == Rule::MOMENTUM ? 1.0 : 1 - std::pow(hyper[Hyper::BETA1], step);
  coefs[TensorCoef::STEP_SIZE] = group[Group::SCHEDULED_LR] / bc1;
  coefs[TensorCoef::INV_SQRT_BC2] = group[Group::ADAPTIVE] != 0 ? 1 / std::sqrt(bc2) : 0.0;
  coefs[TensorCoef::E_TO_Y] = scalars[Scalar::Y_BETA] - beta * (1 - group[Group::CKP1]);
  coefs[TensorCoef::GRAD_SHARE] = step > 1 ? 1 - hyper[Hyper::DAMPENING] : 1.0;
  scalars[Scalar::STEP] = step;
  scalars[Scalar::Y_BETA] = beta;
}

}  // namespace SFPLUS_ISA
}  // namespace sfplus
