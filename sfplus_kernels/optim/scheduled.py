"""What AdamWScheduleFree and SGDScheduleFree share: gamma is ``lr`` under warmup, no loss is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.backends.layout import Group, Rule
from sfplus_kernels.optim.base import ScheduleFreeOptimizer


class ScheduledOptimizer(ScheduleFreeOptimizer):
    """Base of the Schedule-Free optimizers whose step size is a given learning rate.

    A step is one pass over memory. ``group["scheduled_lr"]`` is current after each step: a float, or,
    where ``lr`` is a tensor, a 0-dim float64 tensor on the device, which is waited for only when read.
    """

    def check_settings(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The values of ``layout.Setting``."""
        return (Rule.SCHEDULED, 0.0, 0.0, 0.0, 0.0, -1.0 if group["maximize"] else 1.0)

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """As upstream."""
        return -1.0

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float | Tensor] | None = None
    ) -> float | Tensor | None:
        """One step at the gradients in ``param.grad``, which stay as they are.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()``, returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: in eval mode.
            TypeError, ValueError: unusable gradients or hyperparameters. Nothing has changed then.
        """
        self._check_train_mode()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._run_step(None)
        for index, group in enumerate(self.param_groups):
            if isinstance(group["lr"], Tensor):
                group["scheduled_lr"] = self._get_engine().run.groups[index, Group.SCHEDULED_LR]
            else:  # as finalize does; this rule skips no step, so the host can count along
                warmup_steps = group["warmup_steps"]
                warming = group["k"] + 1 < warmup_steps
                warmup = (group["k"] + 1) / warmup_steps if warming else 1.0
                group["scheduled_lr"] = float(group["lr"]) * warmup
            group["k"] += 1
        return loss
