"""Schedule-Free SGD for code that steps with a closure."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.core.closure_form import ClosureForm
from sfplus_kernels.optim.sgd_schedule_free import SGDScheduleFree


class SGDScheduleFreeClosure(ClosureForm, SGDScheduleFree):
    """``SGDScheduleFree`` that holds x between steps; ``step`` takes a closure.

    Arguments are those of ``SGDScheduleFree``, but as upstream ``weight_decay`` comes before ``momentum``.

    Raises:
        TypeError, ValueError: as there; ``state_format="8bit"`` with bfloat16 parameters, whose 24 bits of y
            would be rounded twice a step.
        RuntimeError: the named backend is unavailable; the message says why.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0,
        momentum: float = 0.9,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        process_group: Any = None,
        shard_group: Any = None,
        row_norm: float | None = None,
        state_format: str = "float32",
        rounding_seed: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            weight_decay,
            warmup_steps,
            r,
            weight_lr_power,
            foreach,
            maximize=maximize,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            process_group=process_group,
            shard_group=shard_group,
            row_norm=row_norm,
            state_format=state_format,
            rounding_seed=rounding_seed,
            backend=backend,
        )
