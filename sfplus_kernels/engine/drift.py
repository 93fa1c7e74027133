"""The sums of a watched step, for all parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from sfplus_kernels.contract.layout import Drift
from sfplus_kernels.engine.engine import Engine
from sfplus_kernels.engine.plans import KeptPlan


def check_watchable(engine: Engine) -> None:
    """Raise RuntimeError if what an engine's steps sum up cannot change."""
    if engine.recorded:
        raise RuntimeError(
            "a CUDA graph has recorded steps of this optimizer, and its replays go on as they were "
            "recorded; call monitor_drift() before the capture"
        )


def drift_of_all(engine: Engine, kept: KeptPlan | None, of_copies: Tensor | None) -> Tensor:
    """(n_params, len(Drift)) of what this process holds, times the number of shards of each.

    Args:
        kept: the plan of the last step; a parameter that it does not have has NaN.
        of_copies: its sums, where that step was on copies of the tensors.
    """
    shape = (len(engine.run.tensors), len(Drift))
    sums = torch.full(shape, torch.nan, dtype=torch.float64, device=engine.device)
    if kept is not None:
        found = engine.drift(kept.plan) if of_copies is None else of_copies
        slots = torch.tensor([entry.slot for entry in kept.entries], device=sums.device)
        shards = sums.new_tensor([float(entry.shards) for entry in kept.entries])
        sums[slots] = found * shards[:, None]
    return sums
