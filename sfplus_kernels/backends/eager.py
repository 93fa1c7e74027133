"""Plain torch operations in displacement form: runs wherever torch has float64, and reads like the paper.

The last resort, several times slower than the compiled backends, but like them it never waits for the
device: a skipped step is a ``torch.where``, not a branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfplus_kernels.backends import eight_bits, sixteen_bits
from sfplus_kernels.backends.drift import drift_sums
from sfplus_kernels.backends.eager_memory import (
    follows,
    moments,
    stored_y,
    take_what_was_written,
    values,
)
from sfplus_kernels.contract.backend import MAX_COEFFICIENT, Entry, RunState
from sfplus_kernels.contract.formats import state_dtype
from sfplus_kernels.contract.layout import (
    Drift,
    Format,
    Global,
    Group,
    GroupCoef,
    Hyper,
    Move,
    Rule,
    Scalar,
    TensorCoef,
)


@dataclass
class EagerPlan:
    entries: list[Entry]
    slots: Tensor  # (n_active,) rows of RunState.tensors
    groups: Tensor  # (n_active,) the group of each
    sums: Tensor  # (1, 3) float64, columns as in layout.Sum
    gradients: list[Tensor] = field(default_factory=list)  # from set_gradients until update
    drift: Tensor | None = None  # (n_active, len(Drift)) float64 of a plan that is watched


class EagerBackend:
    """See ``contract.backend``."""

    can_be_watched = True

    def plan(
        self, entries: Sequence[Entry], device: torch.device, *, watched: bool = False
    ) -> EagerPlan:
        drift = torch.full(
            (len(entries), len(Drift)), torch.nan, dtype=torch.float64, device=device
        )
        return EagerPlan(
            entries=list(entries),
            slots=torch.tensor([e.slot for e in entries], dtype=torch.int64, device=device),
            groups=torch.tensor([e.group for e in entries], dtype=torch.int64, device=device),
            sums=torch.zeros(1, 3, dtype=torch.float64, device=device),
            drift=drift if watched else None,
        )

    def set_gradients(
        self, plan: EagerPlan, gradients: Sequence[Tensor], *, moved: bool = True
    ) -> None:
        plan.gradients = [g.detach() for g in gradients]

    def steps_at_once(self, plan: EagerPlan) -> bool:
        return False

    def step(
        self, plan: EagerPlan, run: RunState, *, sums: bool, with_e: bool, loss: Tensor | None
    ) -> None:
        raise NotImplementedError("steps_at_once says that there is none")

    def reduce(self, plan: EagerPlan, *, with_e: bool) -> Tensor:
        plan.sums.zero_()
        for entry, gradient in zip(plan.entries, plan.gradients, strict=True):
            g = gradient.to(state_dtype(entry.param.dtype))
            e = entry.displacement
            dot = (g * e).sum() if with_e and e is not None else g.new_zeros(())
            sums = torch.stack((g.abs().sum(), dot, g.square().sum())).to(torch.float64)
            plan.sums += sums if entry.shards == 1 else sums * entry.shards
        return plan.sums

    def finalize(self, plan: EagerPlan, run: RunState, partials: Tensor | None) -> None:
        (
            lr, sf_beta1, beta1, beta2, eps, weight_decay, r, c_warmup, warmup_steps, power, silent, ascends,
            max_lr, decay_peak, nesterov, _, c_factor,
        ) = _columns(run.hyper, Hyper)  # fmt: skip
        rule, sf_beta1_max, anneal_steps, polyak_beta, f_star, sign, max_norm, _ = (
            run.settings.unbind()
        )
        polyak = rule == Rule.POLYAK
        # of the loss's own gradients; those in memory may be scaled and clipped
        scale = run.globals[Global.GRAD_SCALE]
        inverse = 1 / (scale * run.globals[Global.CLIP_COEF])
        sums = torch.zeros_like(plan.sums[0]) if partials is None else partials.sum(0)
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
        group = plan.groups
        step = run.tensors[plan.slots, Scalar.STEP] + 1
        b = run.tensors[plan.slots, Scalar.Y_BETA]
        step_size = gamma[group] / torch.where(momentum, 1, 1 - beta1[group] ** step)
        inv_sqrt_bc2 = torch.where(rule == Rule.PAPER, 1, (1 - beta2[group] ** step).rsqrt())
        inv_sqrt_bc2 = inv_sqrt_bc2 * adaptive[group]
        e_to_y = b - (beta * (1 - c))[group]
        new = torch.stack((step_size, inv_sqrt_bc2, e_to_y), dim=1)
        run.tensor_coefs[plan.slots] = torch.where(skip, run.tensor_coefs[plan.slots], new)
        new = torch.stack((step, beta[group]), dim=1)
        run.tensors[plan.slots] = torch.where(skip, run.tensors[plan.slots], new)

    def update(self, plan: EagerPlan, run: RunState) -> None:
        skip = run.globals[Global.SKIP] > 0
        for number, (entry, gradient) in enumerate(zip(plan.entries, plan.gradients, strict=True)):
            take_what_was_written(entry, skip)
            y, e = values(entry)
            old_y = y if plan.drift is None else y.clone()
            # formed in float64, rounded once to the dtype of the arithmetic
            group_coefs = run.group_coefs[entry.group].to(y.dtype)
            tensor_coefs = run.tensor_coefs[entry.slot].to(y.dtype)
            (
                beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y, m_to_u, grad_to_u,
            ) = _columns(group_coefs, GroupCoef)  # fmt: skip
            step_size, inv_sqrt_bc2, e_to_y = _columns(tensor_coefs, TensorCoef)
            g = gradient.to(y.dtype)
            kept, new = moments(entry), {}
            plain_momentum = e is None and kept.keys() == {"exp_avg"}
            m = grad_to_m * g
            if plain_momentum:  # the decay is part of the gradient
                g = m = m + omega * y
            if "exp_avg" in kept:
                m = new["exp_avg"] = beta1 * kept["exp_avg"] + m
            if plain_momentum:
                delta = step_size * (m_to_u * m + grad_to_u * g)
            elif "exp_avg_sq" not in kept:
                delta = step_size * m + omega * y
            else:
                v = new["exp_avg_sq"] = beta2 * kept["exp_avg_sq"] + grad_to_v * g * g
                delta = step_size * m / (v.sqrt() * inv_sqrt_bc2 + eps) + omega * y
            if e is None:
                y = y + delta_to_y * delta
            else:
                y = y + (e_to_y * e + delta_to_y * delta)
                e = new["displacement"] = e_kept * (e - delta)
            unprojected = y
            if entry.projected:
                y, e = _projected(y, e, run, entry.group)
                new |= {} if e is None else {"displacement": e}
            words = None
            if entry.format != Format.FULL:
                words = sixteen_bits.random_words(entry, run)
                keep = sixteen_bits if entry.format == Format.HALF else eight_bits
                new = keep.stored(new, words)
            for name, value in {**new, **stored_y(entry, y, words)}.items():
                old = getattr(entry, name).detach()
                old.copy_(torch.where(skip, old, value))
            if plan.drift is not None:
                # of the step alone, and as it is stored: where rows are projected, in full
                moved = unprojected if entry.projected else values(entry)[0]
                sums = drift_sums(old_y, moved, gradient.to(y.dtype))
                plan.drift[number] = torch.where(skip, plan.drift[number], sums)
        plan.gradients = []  # kept longer, they would be memory that zero_grad() does not free

    def drift(self, plan: EagerPlan) -> Tensor:
        assert plan.drift is not None, "the plan was made without watched=True"
        return plan.drift

    def interpolate(self, plan: EagerPlan, run: RunState, move: Move) -> None:
        skip = run.globals[Global.SKIP] > 0
        for entry in plan.entries:
            param = entry.param.detach()
            if move != Move.ABSORB_Z and not (move == Move.TO_Y and follows(entry)):
                take_what_was_written(entry)
            y, e = values(entry)
            assert e is not None
            assert entry.displacement is not None
            b = run.tensors[entry.slot, Scalar.Y_BETA]
            x_share = (1 - b).to(e.dtype) * e
            if move == Move.TO_X:  # where y is more than the parameter, it stays what it is
                param.copy_(y - x_share)
                continue
            if move == Move.TO_Y and follows(entry):
                untouched = (y - x_share).to(param.dtype) == param
                y = torch.where(untouched, y, param.to(y.dtype) + x_share)
            elif move == Move.TO_Y:
                y = y + x_share
            elif move == Move.SHIFT:
                y = y + run.tensor_coefs[entry.slot, TensorCoef.E_TO_Y].to(e.dtype) * e
            elif move == Move.EXPOSE_Z:
                hyper = run.hyper[entry.group]
                omega = (hyper[Hyper.LR] * hyper[Hyper.WEIGHT_DECAY]).to(e.dtype)
                x = y - x_share
                y = y + (b.to(e.dtype) * e - omega * y)
                entry.displacement.copy_(x)
            else:
                if follows(entry):  # what the other optimizer did to the rounding of z
                    y = y + (param.to(y.dtype) - y.to(param.dtype).to(y.dtype))
                e_kept = torch.where(skip, 1, run.group_coefs[entry.group, GroupCoef.E_KEPT])
                e = e_kept.to(e.dtype) * (y - e)
                entry.displacement.copy_(e)
                y = y - b.to(e.dtype) * e
            for name, value in stored_y(entry, y).items():
                getattr(entry, name).detach().copy_(value)


def _projected(
    y: Tensor, e: Tensor | None, run: RunState, group: int
) -> tuple[Tensor, Tensor | None]:
    """y and e once each row of z has the norm of its group: as if delta had been so much more."""
    beta, row_norm = run.groups[group, Group.Y_BETA], run.hyper[group, Hyper.ROW_NORM]
    z = y if e is None else y + beta.to(y.dtype) * e
    norms = z.flatten(1).to(torch.float64).square().sum(1).sqrt()
    excess = torch.where(norms > 0, 1 - row_norm / norms, 0)  # the part of the row that is too much
    delta = excess.to(y.dtype).view(-1, *[1] * (y.dim() - 1)) * z
    coefs = run.group_coefs[group].to(y.dtype)
    y = y + coefs[GroupCoef.DELTA_TO_Y] * delta
    return y, None if e is None else e - coefs[GroupCoef.E_KEPT] * delta


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


def _columns(table: Tensor, columns: type) -> tuple[Tensor, ...]:
    """The columns of a buffer in the order of its enum."""
    return tuple(table[..., column] for column in columns)  # type: ignore[attr-defined]
