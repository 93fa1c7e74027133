"""Plain torch operations in displacement form: runs wherever torch has float64, and reads like the paper.

The last resort, several times slower than the compiled backends, but like them it never waits for the
device: a skipped step is a ``torch.where``, not a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfplus_kernels.backends import eight_bits, sixteen_bits
from sfplus_kernels.backends.drift import drift_sums
from sfplus_kernels.backends.eager_finalize import finalize
from sfplus_kernels.backends.eager_memory import (
    columns,
    follows,
    moments,
    stored_y,
    take_what_was_written,
    values,
)
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.formats import state_dtype
from sfplus_kernels.contract.layout import (
    Drift,
    Format,
    Global,
    Group,
    GroupCoef,
    Hyper,
    Move,
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
        sums = torch.zeros_like(plan.sums[0]) if partials is None else partials.sum(0)
        finalize(run, sums, plan.slots, plan.groups)

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
            ) = columns(group_coefs, GroupCoef)  # fmt: skip
            step_size, inv_sqrt_bc2, e_to_y, grad_share = columns(tensor_coefs, TensorCoef)
            g = gradient.to(y.dtype)
            kept, new = moments(entry), {}
            plain_momentum = e is None and kept.keys() == {"exp_avg"}
            m = grad_to_m * g
            if plain_momentum:  # the decay is part of the gradient
                g = m + omega * y
                m = grad_share * g
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
            words = None
            if entry.format != Format.FULL:
                words = sixteen_bits.random_words(entry, run)
            _keep(entry, new, y, words, skip)
            if plan.drift is not None:  # of the step alone, and as it is stored
                sums = drift_sums(old_y, values(entry)[0], gradient.to(y.dtype))
                plan.drift[number] = torch.where(skip, plan.drift[number], sums)
            if entry.projected:  # what is stored, and rounded once more
                y, e = _projected(*values(entry), run, entry.group)
                new = {} if e is None else {"displacement": e}
                _keep(entry, new, y, None if words is None else sixteen_bits.turned(words), skip)
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


def _keep(
    entry: Entry, new: dict[str, Tensor], y: Tensor, words: Tensor | None, skip: Tensor
) -> None:
    """Store ``new`` buffers and y, in fewer bits rounded by random ``words``; nothing on a skipped step."""
    if entry.format != Format.FULL:
        assert words is not None
        new = (sixteen_bits if entry.format == Format.HALF else eight_bits).stored(new, words)
    for name, value in {**new, **stored_y(entry, y, words)}.items():
        old = getattr(entry, name).detach()
        old.copy_(torch.where(skip, old, value))


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
