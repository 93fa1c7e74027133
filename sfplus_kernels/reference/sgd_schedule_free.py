"""Schedule-Free SGD (arXiv 2405.15682) with x, y and z explicit, for reading and testing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.reference.given_lr import GivenLrReference


class SGDScheduleFreeReference(GivenLrReference):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code, more memory.

    Arguments as in ``sfplus_kernels.SGDScheduleFree``, without checks.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
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
            "momentum": momentum,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "row_norm": row_norm,
        }
        super().__init__(params, per_group, maximize=maximize)

    def momentum(self, group: dict[str, Any]) -> float:
        """beta"""
        return float(group["momentum"])

    def direction(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """g"""
        return g
