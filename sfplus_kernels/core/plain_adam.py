"""What AdamW and AdamC share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfplus_kernels.contract.layout import Hyper
from sfplus_kernels.core.hyperparameters import check_betas, check_lr, check_number
from sfplus_kernels.core.plain import PlainOptimizer, check_refused

REFUSED = {
    "amsgrad": "leave it off",
    "differentiable": "the step is outside of autograd: leave it off",
}


class PlainAdam(PlainOptimizer):
    """Adam with decoupled decay, without averaging."""

    needed_of_torch = ("lr", "betas", "eps", "weight_decay")

    def __init__(
        self, params: Any, defaults: dict[str, Any], backend: str | None, **shared: Any
    ) -> None:
        check_refused(defaults, type(self).__name__, REFUSED)
        kept = {name: value for name, value in defaults.items() if name != "differentiable"}
        super().__init__(params, kept, backend, **shared)

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """A row of ``layout.Hyper``."""
        check_refused(group, type(self).__name__, REFUSED)
        beta1, beta2 = check_betas(group["betas"])
        return Hyper.row(
            lr=check_lr(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=check_number("eps", group["eps"], 0, open_low=True),
            weight_decay=check_number("weight_decay", group["weight_decay"], 0),
            decay_peak=self.decay_peak(group),
        )

    def decay_peak(self, group: Mapping[str, Any]) -> float:
        """``layout.Hyper.DECAY_PEAK``: the decay is not corrected."""
        return 0.0

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Both moments."""
        return ("exp_avg", "exp_avg_sq")
