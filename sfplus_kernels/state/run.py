"""Run state between the engine's fp64 buffers and ``param_groups``, under upstream's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch

from sfplus_kernels.contract.backend import RunState
from sfplus_kernels.contract.layout import Global, Group, Scalar

# group key -> where the engine keeps it
COUNTERS_OF_SKIPS = {
    "skipped_steps": Global.SKIPPED_STEPS,
    "consecutive_skipped_steps": Global.CONSECUTIVE_SKIPPED_STEPS,
}
POLYAK_KEYS = {"grad_l1_ema": Global.GRAD_L1_EMA, **COUNTERS_OF_SKIPS}
GROUP_KEYS = {
    "k": Group.K,
    "lr_max": Group.LR_MAX,
    "weight_sum": Group.WEIGHT_SUM,
    "ckp1": Group.CKP1,
    "scheduled_lr": Group.SCHEDULED_LR,
}
KEPT_KEYS = {**GROUP_KEYS, "y_beta": Group.Y_BETA}
"""With beta of y at the last step: one for all tensors of a group, also for those without a gradient then."""

COUNTERS = ("k", *COUNTERS_OF_SKIPS)
WRITABLE_KEYS = ("k", "lr_max", "weight_sum")
"""Of ``GROUP_KEYS`` those that the next step goes on from; the others are results."""


def fill(run: RunState, groups: Sequence[Mapping[str, Any]], keys: Mapping[str, Global]) -> None:
    """Fill fresh buffers from the groups.

    Args:
        keys: the run state without a group that there is; see ``Algorithm.global_keys``.
    """
    for key, index in keys.items():
        run.globals[index] = float(groups[0][key])
    rows = [[float(group[key]) for key in KEPT_KEYS] for group in groups]
    values = torch.tensor(rows, dtype=torch.float64)
    run.groups[:, list(KEPT_KEYS.values())] = values.to(run.groups.device)
    sizes = torch.tensor([len(group["params"]) for group in groups], device=run.groups.device)
    run.tensors[:, Scalar.Y_BETA] = run.groups[:, Group.Y_BETA].repeat_interleave(sizes)


def into_groups(
    figures: Sequence[float], groups: Sequence[dict[str, Any]], keys: Mapping[str, Global]
) -> None:
    """Write ``Engine.figures()`` into the groups."""
    for number, group in enumerate(groups):
        values = {key: figures[index] for key, index in keys.items()}
        values |= of_group(figures, number)
        group.update({k: int(v) if k in COUNTERS else v for k, v in values.items()})


def of_group(figures: Sequence[float], number: int) -> dict[str, float]:
    """The figures of one group, out of ``Engine.figures()``."""
    first = len(Global) + number * len(Group)
    return {key: figures[first + index] for key, index in KEPT_KEYS.items()}


def shown(groups: Sequence[Mapping[str, Any]], keys: Mapping[str, Global]) -> list[tuple[Any, ...]]:
    """What the groups show of the run state that a user may write: of each group a tuple."""
    read = itemgetter(*WRITABLE_KEYS, *keys)
    return [read(group) for group in groups]


def take_over(
    run: RunState,
    before: Sequence[tuple[Any, ...]],
    now: Sequence[tuple[Any, ...]],
    keys: Mapping[str, Global],
) -> None:
    """Bring what a user wrote into the groups to the run state: what ``shown`` shows now and did not before.

    What is one for all groups is taken from the first whose value was changed.
    """
    for number, (old, new) in enumerate(zip(before, now, strict=True)):
        names = (*WRITABLE_KEYS, *keys)
        for name, was, value in zip(names, old, new, strict=True):
            if value is was or value == was:
                continue
            if name in keys:
                run.globals[keys[name]] = float(value)
            else:
                run.groups[number, GROUP_KEYS[name]] = float(value)
