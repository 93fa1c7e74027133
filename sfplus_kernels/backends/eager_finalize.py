"""The coefficients of a step in plain torch: gamma, beta, c and what follows from them, in float64.

The equations are those of docs/algorithm.md. A skipped step is a ``torch.where``, not a branch: nothing here
waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfplus_kernels.backends.eager_memory import columns
from sfplus_kernels.contract.backend import MAX_COEFFICIENT, RunState
from sfplus_kernels.contract.layout import Global, Group, Hyper, Rule, Scalar


def finalize(run: RunState, sums: Tensor, slots: Tensor, groups: Tensor) -> None:
    """Fill ``run`` with what ``update`` needs.

    Args:
        sums: (3,) float64, columns as in ``layout.Sum``: over all gradients of all processes.
        slots: (n_active,) rows of ``run.tensors``.
        groups: (n_active,) the group of each.
    """
    (
        lr, sf_beta1, beta1, beta2, eps, weight_decay, r, c_warmup, warmup_steps, power, silent, ascends,
        max_lr, decay_peak, nesterov, _, c_factor, dampening,
    ) = columns(run.hyper, Hyper)  # fmt: skip
    rule, sf_beta1_max, anneal_steps, polyak_beta, f_star, sign, max_norm, _ = run.settings.unbind()
    polyak = rule == Rule.POLYAK
    # of the loss's own gradients; those in memory may be scaled and clipped
    scale = run.globals[Global.GRAD_SCALE]
    inverse = 1 / (scale * run.globals[Global.CLIP_COEF])
    l1, dot, squares = sums[0] * inverse, sums[1] * inverse, sums[2] * inverse**2
    clip = torch.where(max_norm > 0, max_norm / (squares.sqrt() + 1e-6), 1).clamp(max=1)
    grad_factor = clip / scale
    f = run.globals[Global.FUNCTION_VALUE]
    k = run.groups[:, Group.K]

    # beta_k of each group: annealed so that ln(1 - beta) is linear in the step
    s = (k[0] / anneal_steps.clamp(min=1)).clamp(max=1)
    annealed = 1 - torch.exp((1 - s) * torch.log1p(-sf_beta1) + s * torch.log1p(-sf_beta1_max))
    beta = torch.where(anneal_steps > 0, annealed, sf_beta1)

    # Polyak step; 0 when every gradient is zero
    ip_term = sign * beta[0] * dot
    ema = run.globals[Global.GRAD_L1_EMA]
    ema = polyak_beta * ema + (1 - polyak_beta) * math.sqrt(math.pi / 2) * l1
    denominator = ema / (1 - polyak_beta ** (k[0] + 1))
    numerator = (sign * (f - f_star) + ip_term).clamp(min=0)
    polyak_lr = torch.where(denominator > 0, numerator / denominator, 0)
    polyak_lr = torch.where(polyak, polyak_lr, 1)

    # averaging weight c_k
    warmup = torch.where(warmup_steps > 0, ((k + 1) / warmup_steps).clamp(max=1), 1)
    factor, adaptive = _factor_of_rule(rule, beta2, k + 1, silent)
    gamma = torch.where(polyak, torch.maximum(lr, eps), lr) * warmup * polyak_lr * factor
    cap = max_lr * warmup
    gamma = torch.where((cap > 0) & (gamma > cap), cap, gamma)  # a NaN stays one
    lr_max = torch.maximum(run.groups[:, Group.LR_MAX], gamma)
    weight = torch.where(k < c_warmup, 0, (k + 1) ** r * lr_max**power)
    weight_sum = run.groups[:, Group.WEIGHT_SUM] + weight
    c = torch.where(weight_sum > 0, weight / weight_sum, 0)
    c = torch.where(c_factor > 0, (c * c_factor).clamp(max=1), c)
    c = torch.where(k < c_warmup, 1, c)
    peak = torch.where(decay_peak > 0, decay_peak, lr_max)
    share = torch.where(peak > 0, gamma / peak, 0)
    decay = torch.where(decay_peak != 0, share, 1) * weight_decay
    momentum = rule == Rule.MOMENTUM
    # of SGD's momentum the decay is part of the gradient, which gamma is multiplied with later
    in_gradient = momentum & (beta1 > 0)
    omega = torch.where(polyak, gamma**2, torch.where(in_gradient, 1, gamma)) * decay

    in_range = (gamma <= MAX_COEFFICIENT) & (omega <= MAX_COEFFICIENT) & weight_sum.isfinite()
    finite = torch.stack((l1, dot, squares, f)).isfinite().all()
    skip = ~(finite & in_range.all() & (run.globals[Global.FOUND_INF] == 0))

    def keep_or(old: Tensor, new: Tensor) -> None:
        old.copy_(torch.where(skip, old, new))

    figures = run.globals
    figures[Global.GRAD_L1] = l1
    figures[Global.GRAD_NORM] = squares.sqrt()
    figures[Global.IP_TERM] = ip_term
    figures[Global.SKIP] = skip.to(torch.float64)
    figures[Global.SKIPPED_STEPS] += skip
    figures[Global.CONSECUTIVE_SKIPPED_STEPS] += 1
    figures[Global.CONSECUTIVE_SKIPPED_STEPS] *= skip
    keep_or(figures[Global.GRAD_L1_EMA], ema)
    keep_or(figures[Global.POLYAK_LR], polyak_lr)
    keep_or(figures[Global.SF_BETA1], beta[0])
    keep_or(run.groups, torch.stack((k + 1, lr_max, weight_sum, c, gamma, beta, adaptive), 1))
    delta_to_y = -(1 - beta * (1 - c))
    added = torch.where(adaptive > 0, eps, 1)
    direction = torch.where(ascends > 0, -sign, sign)
    to_m = direction * torch.where(momentum, 1, 1 - beta1) * grad_factor
    to_v = (1 - beta2) * grad_factor**2
    to_u = torch.where(nesterov > 0, beta1, 1), (nesterov > 0).to(torch.float64)
    coefs = (beta1, to_m, beta2, to_v, added, omega, 1 - c, delta_to_y, *to_u)
    keep_or(run.group_coefs, torch.stack(coefs, dim=1))

    # per tensor: bias corrections with its own step count, and its own b
    step = run.tensors[slots, Scalar.STEP] + 1
    b = run.tensors[slots, Scalar.Y_BETA]
    step_size = gamma[groups] / torch.where(momentum, 1, 1 - beta1[groups] ** step)
    inv_sqrt_bc2 = torch.where(rule == Rule.PAPER, 1, (1 - beta2[groups] ** step).rsqrt())
    inv_sqrt_bc2 = inv_sqrt_bc2 * adaptive[groups]
    e_to_y = b - (beta * (1 - c))[groups]
    grad_share = torch.where(step > 1, 1 - dampening[groups], 1)
    new = torch.stack((step_size, inv_sqrt_bc2, e_to_y, grad_share), dim=1)
    run.tensor_coefs[slots] = torch.where(skip, run.tensor_coefs[slots], new)
    new = torch.stack((step, beta[groups]), dim=1)
    run.tensors[slots] = torch.where(skip, run.tensors[slots], new)


def _factor_of_rule(
    rule: Tensor, beta2: Tensor, step: Tensor, silent: Tensor
) -> tuple[Tensor, Tensor]:
    """Per group: the factor on gamma beside the warmup, and 1 where u is divided by sqrt(v), else 0."""
    beta2_t = beta2**step
    paper = (1 - beta2_t).sqrt()
    # RAdam: the length of the moving average, and its rectification
    rho_inf = 2 / (1 - beta2) - 1
    rho_t = rho_inf - 2 * step * beta2_t / (1 - beta2_t)
    long_enough = rho_t > 4
    ratio = (rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)
    rect = torch.where(long_enough, ratio, 1).sqrt()
    rect = torch.where(long_enough, rect, 1 - silent)
    rectified = rule == Rule.RECTIFIED
    factor = torch.where(rectified, rect, torch.where(rule == Rule.PAPER, paper, 1))
    return factor, (~rectified | long_enough).to(torch.float64)
