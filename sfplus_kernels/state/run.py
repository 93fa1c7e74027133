"""Run state between the engine's fp64 buffers and ``param_groups``, under upstream's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sfplus_kernels.contract.backend import RunState
from sfplus_kernels.contract.layout import Global, Group

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
COUNTERS = ("k", *COUNTERS_OF_SKIPS)


def fill(run: RunState, groups: Sequence[Mapping[str, Any]], keys: Mapping[str, Global]) -> None:
    """Fill fresh buffers from the groups.

    Args:
        keys: the run state without a group that there is; see ``Algorithm.global_keys``.
    """
    for key, index in keys.items():
        run.globals[index] = float(groups[0][key])
    rows = [[float(group[key]) for key in GROUP_KEYS] for group in groups]
    values = torch.tensor(rows, dtype=torch.float64)
    run.groups[:, list(GROUP_KEYS.values())] = values.to(run.groups.device)


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
    return {key: figures[first + index] for key, index in GROUP_KEYS.items()}
