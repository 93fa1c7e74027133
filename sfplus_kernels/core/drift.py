"""Norms, rotation and steady state, from the sums that a drift monitor keeps: see docs/drift.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sfplus_kernels.contract.layout import Drift, Group, GroupCoef, Rule

NAMES = ("weight_norm", "grad_norm", "update_norm", "rotation", "grad_ratio", "update_ratio")
"""Of what ``measured`` returns, in its order."""


class Steady(NamedTuple):
    """|g| / |y| and |y - old y| / |y| where growth by steps and shrinking by decay are in balance."""

    grad_ratio: float  # NaN where u is not a multiple of the gradient
    update_ratio: float


def measured(sums: Sequence[float], grad_factor: float) -> tuple[float, ...]:
    """Figures of one step.

    Args:
        sums: as in ``layout.Drift``.
        grad_factor: what the gradients in memory are multiplied with.
    """
    weight = _root(sums[Drift.WEIGHT_SQ])
    grad = _root(sums[Drift.GRAD_SQ]) * grad_factor
    update = _root(sums[Drift.UPDATE_SQ])
    if not weight > 0:
        return weight, grad, update, math.nan, math.nan, math.nan
    # the update along y and across: so nothing cancels, however small the angle is
    along = sums[Drift.WEIGHT_DOT_UPDATE] / weight
    across = _root(max(sums[Drift.UPDATE_SQ] - along**2, 0.0))
    return weight, grad, update, math.atan2(across, weight - along), grad / weight, update / weight


def _root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def grad_factor(coefs: Sequence[float], rule: Rule) -> float:
    """What a step multiplies the gradients in memory with: a scale taken out, and its own clipping."""
    share = 1.0 if rule == Rule.MOMENTUM else 1 - coefs[GroupCoef.BETA1]
    return abs(coefs[GroupCoef.GRAD_TO_M]) / share


def steady(
    coefs: Sequence[float],
    group: Sequence[float],
    rule: Rule,
    buffers: Sequence[str],
    dampening: float = 0.0,
) -> Steady:
    """What |g| / |y| and |y - old y| / |y| tend to for weights whose gradient is orthogonal to them.

    Args:
        coefs: the group's, as in ``layout.GroupCoef``.
        group: as in ``layout.Group``.
        buffers: what it keeps of a tensor.
        dampening: of SGD's momentum.
    """
    gamma, sf_beta, c = group[Group.SCHEDULED_LR], group[Group.Y_BETA], 1 - coefs[GroupCoef.E_KEPT]
    decay = coefs[GroupCoef.OMEGA]
    beta = coefs[GroupCoef.BETA1] if "exp_avg" in buffers or "momentum_buffer" in buffers else 0.0
    # of one gradient, over all steps that it is part of: the sum of its coefficients in u, and of their
    # squares
    if rule == Rule.MOMENTUM and beta > 0:
        of_m, of_g = coefs[GroupCoef.M_TO_U] * (1 - dampening), coefs[GroupCoef.GRAD_TO_U]
        total = of_m / (1 - beta) + of_g
        squares = (of_m + of_g) ** 2 + (of_m * beta) ** 2 / (1 - beta**2)
        decay *= (
            gamma * total
        )  # as part of the gradient it comes with every step that this is part of
    else:
        total, squares = 1.0, (1 - beta) / (1 + beta)
    # |y|^2 over that of weights that are not averaged. They take in all of a step at once; y 1 - beta
    # of it, and the rest as x follows z: in time where c is large beside the decay, else only when it has
    # decayed. See docs/drift.md
    at_once = 1 - sf_beta
    follows = c / (decay + c) if decay + c > 0 else 1.0
    spread = at_once**2 + sf_beta * follows * (1 + at_once)
    of_it = at_once + sf_beta * follows
    if not (spread > 0 and of_it > 0):
        return Steady(math.nan, math.nan)
    spread /= of_it
    share = -coefs[GroupCoef.DELTA_TO_Y]  # of a step of z that y takes at once
    is_gradient = "exp_avg_sq" not in buffers and gamma > 0
    return Steady(
        grad_ratio=math.sqrt(2 * decay / spread) / (gamma * total) if is_gradient else math.nan,
        update_ratio=share * math.sqrt(2 * decay * squares / spread) / total,
    )


def drift_figures(
    of_tensors: Sequence[Sequence[float]],
    coefs: Sequence[Sequence[float]],
    of_groups: Sequence[Sequence[float]],
    rule: Rule,
    groups: Sequence[Mapping[str, Any]],
    buffers: Sequence[Sequence[str]],
    per: str,
) -> dict[str, list[float]]:
    """What ``metrics()`` shows of it: lists with a value per group and, if asked for, per tensor.

    Args:
        coefs, of_groups: rows of ``layout.GroupCoef`` and ``layout.Group``.
        of_tensors: the sums of every parameter; NaN for one without a gradient, which its group leaves out.
    """
    figures: dict[str, list[float]] = {}
    place = 0

    def add(prefix: str, sums: Sequence[float], factor: float, balance: Steady) -> None:
        values = dict(zip(NAMES, measured(sums, factor), strict=True))
        values["steady_grad_ratio"] = balance.grad_ratio
        values["steady_update_ratio"] = balance.update_ratio
        for name, value in values.items():
            figures.setdefault(f"{prefix}_{name}", []).append(value)

    for number, group in enumerate(groups):
        size = len(group["params"])
        own, place = of_tensors[place : place + size], place + size
        factor = grad_factor(coefs[number], rule)
        balance = steady(
            coefs[number], of_groups[number], rule, buffers[number], group.get("dampening", 0.0)
        )
        known = [sums for sums in own if not math.isnan(sums[0])]
        total = [math.fsum(column) for column in zip(*known, strict=True)]
        add("group", total or [math.nan] * len(Drift), factor, balance)
        if per == "tensor":
            for sums in own:
                add("tensor", sums, factor, balance)
    return figures
