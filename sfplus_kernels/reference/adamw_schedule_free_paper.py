"""Schedule-Free AdamW as in the experiments of arXiv 2405.15682, with x, y and z explicit."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sfplus_kernels.reference.given_lr import GivenLrReference, moving_average, warmup


class AdamWScheduleFreePaperReference(GivenLrReference):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code, more memory.

    Arguments as in ``sfplus_kernels.AdamWScheduleFreePaper``, without checks. Keeps exp_avg_sq too.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        row_norm: float | None = None,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "row_norm": row_norm,
        }
        super().__init__(params, per_group, maximize=maximize)

    def lr_factor(self, group: dict[str, Any]) -> float:
        """The bias correction is a factor of gamma, and so of the averaging weights."""
        return warmup(group) * math.sqrt(1 - group["betas"][1] ** (group["k"] + 1))

    def direction(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """g / (sqrt(v) + eps)"""
        v = moving_average(state, "exp_avg_sq", g * g, group["betas"][1], corrected=False)
        u: Tensor = g / (v.sqrt() + group["eps"])
        return u
