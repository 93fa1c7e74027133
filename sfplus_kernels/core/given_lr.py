"""Where gamma comes from, one way: it is a given learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.compiling.tracing import ends_with_its_passes
from sfplus_kernels.contract.layout import Global, Hyper, Rule, Setting
from sfplus_kernels.core.fused import FusedOptimizer
from sfplus_kernels.core.hyperparameters import check_closure, check_lr, check_max_grad_norm
from sfplus_kernels.core.runaway import LARGEST_DECAY
from sfplus_kernels.core.warnings_once import warn_once


class GivenLrOptimizer(FusedOptimizer):
    """Base of the optimizers whose step size is a given learning rate.

    A step is one pass over memory. ``group["scheduled_lr"]`` is current after each step: a float, or,
    where ``lr`` is a tensor or a step may be skipped (``skip_nonfinite``, ``max_grad_norm``, AMP), a
    0-dim float64 tensor on the device, which is waited for only when read.
    """

    shared_arguments = ("max_grad_norm", "skip_nonfinite")
    rule = Rule.GIVEN_LR
    _host_counts = True  # whether ``k`` in the groups is that of the device

    def settings_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The values of ``layout.Setting``."""
        return Setting.row(
            rule=self.rule,
            grad_sign=1.0,  # each group has its own: see _rows
            max_grad_norm=check_max_grad_norm(group["max_grad_norm"]),
        )

    def _rows(self) -> tuple[list[tuple[float, ...]], tuple[float, ...]]:
        hyper, settings = super()._rows()
        for number, group in enumerate(self.param_groups):
            row = list(hyper[number])
            row[Hyper.ASCENDS] = float(bool(group["maximize"]))
            hyper[number] = tuple(row)
        return hyper, settings

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """As upstream."""
        return -1.0

    def figures(self) -> tuple[Global, ...]:
        """The counters of skipped steps, and the norms of the gradient where they are looked at."""
        norms = (Global.GRAD_L1, Global.GRAD_NORM)
        return (*(norms if self.looks_first else ()), *super().figures())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in the base class; warns of a decay that cannot be meant."""
        super().add_param_group(param_group)
        lr, decay = check_lr(param_group["lr"]), param_group.get("weight_decay", 0)
        if lr * decay > LARGEST_DECAY:
            warn_once(self, "decay-at-lr", share=lr * decay, lr=lr, decay=decay)

    @property
    def steps_groups_together(self) -> bool:
        """Where one norm of all gradients is clipped."""
        return bool(self.param_groups[0]["max_grad_norm"])

    @property
    def looks_first(self) -> bool:
        """Whether a step begins with a pass over the gradients."""
        group = self.param_groups[0]
        return bool(group["skip_nonfinite"] or group["max_grad_norm"])

    def lr_factor(self, group: Mapping[str, Any]) -> float:
        """gamma / lr of the next step of ``group``, as ``finalize`` forms it."""
        step, warmup_steps = group["k"] + 1, group["warmup_steps"]
        return float(step / warmup_steps) if step < warmup_steps else 1.0

    @ends_with_its_passes
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float | Tensor] | None = None,
        *,
        loss: float | Tensor | None = None,
        clip_coef: float | Tensor | None = None,
    ) -> float | Tensor | None:
        """One step at the gradients in ``param.grad``, which stay as they are.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()``, returns the loss.
            loss, clip_coef: not needed here; taken, so that one loop serves all classes.

        Returns:
            What the closure returned, else ``loss``.

        Raises:
            RuntimeError: in eval mode, also if the closure changes to it, except when every ``lr`` is 0:
                then state is allocated and nothing else happens (checkpoint loaders do that).
            TypeError, ValueError: unusable gradients or hyperparameters. Nothing has changed then.
        """
        if closure is None and self._only_makes_state():
            self._only_create_state()
            return None
        self.check_may_step()
        check_closure(closure)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.check_may_step()
        self._advance()
        return loss

    def _advance(self) -> None:
        """One step; the groups show its gamma."""
        host_counts = not self.looks_first and not hasattr(self, "found_inf")
        if host_counts and not self._host_counts:
            self._save_run_state()  # steps may have been skipped before, but are no more
        if not self._run_step(check_finite=self.looks_first):
            return
        # where no step is skipped, the host can count along
        self._host_counts = host_counts
        assert self._runtime is not None
        for group, gamma in zip(self.param_groups, self._runtime.engine.scheduled_lr, strict=True):
            host = self._host_counts and not isinstance(group["lr"], Tensor)
            group["scheduled_lr"] = float(group["lr"]) * self.lr_factor(group) if host else gamma
            if self._host_counts:
                group["k"] += 1
        self._runtime.note_shown()

    def _save_run_state(self) -> None:
        super()._save_run_state()
        self._host_counts = True
