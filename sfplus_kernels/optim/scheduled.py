"""What the Schedule-Free optimizers without a Polyak step share: gamma is a given learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.backends.layout import Global, Rule
from sfplus_kernels.optim.base import ScheduleFreeOptimizer


class ScheduledOptimizer(ScheduleFreeOptimizer):
    """Base of the Schedule-Free optimizers whose step size is a given learning rate.

    A step is one pass over memory. ``group["scheduled_lr"]`` is current after each step: a float, or,
    where ``lr`` is a tensor or ``skip_nonfinite`` is set, a 0-dim float64 tensor on the device, which is
    waited for only when read.
    """

    shared_arguments = ("maximize", "skip_nonfinite")
    rule = Rule.SCHEDULED
    _host_counts = True  # whether ``k`` in the groups is that of the device

    def check_settings(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The values of ``layout.Setting``."""
        return (self.rule, 0.0, 0.0, 0.0, 0.0, -1.0 if group["maximize"] else 1.0)

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """As upstream."""
        return -1.0

    def figures(self) -> tuple[Global, ...]:
        """The counters of skipped steps, and the norms of the gradient where they are looked at."""
        norms = (Global.GRAD_L1, Global.GRAD_NORM)
        return (*(norms if self.param_groups[0]["skip_nonfinite"] else ()), *super().figures())

    def lr_factor(self, group: Mapping[str, Any]) -> float:
        """gamma / lr of the next step of ``group``, as ``finalize`` forms it."""
        step, warmup_steps = group["k"] + 1, group["warmup_steps"]
        return float(step / warmup_steps) if step < warmup_steps else 1.0

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
        self._advance()
        return loss

    def _advance(self) -> None:
        """One step; the groups show its gamma."""
        check_finite = self.param_groups[0]["skip_nonfinite"]
        if not (check_finite or self._host_counts):
            self._save_run_state()  # skip_nonfinite was taken away
        self._run_step(check_finite=check_finite)
        self._host_counts = not check_finite
        for group, gamma in zip(self.param_groups, self._get_engine().scheduled_lr, strict=True):
            host = not check_finite and not isinstance(group["lr"], Tensor)
            group["scheduled_lr"] = float(group["lr"]) * self.lr_factor(group) if host else gamma
            if not check_finite:  # then no step is skipped, and the host can count along
                group["k"] += 1
