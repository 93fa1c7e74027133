"""Where gamma comes from, the other way: a Polyak step of the loss and the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.compiling.tracing import ends_with_its_passes
from sfplus_kernels.contract.layout import Global
from sfplus_kernels.core.fused import FusedOptimizer
from sfplus_kernels.core.hyperparameters import (
    check_clip_coef,
    check_closure,
    largest_gamma,
)
from sfplus_kernels.core.losses import LossReports
from sfplus_kernels.core.wrappers import of_the_inner
from sfplus_kernels.state.checks import check_loss
from sfplus_kernels.state.run import POLYAK_KEYS


class PolyakOptimizer(FusedOptimizer):
    """Base of the optimizers whose step size comes from the loss."""

    shared_arguments: tuple[str, ...] = ("polyak_beta", "f_star", "maximize", "max_grad_norm")
    global_keys = POLYAK_KEYS
    advances_without_gradients = False
    needs_loss = True
    _loss_reports: LossReports | None = None

    @property
    def steps_groups_together(self) -> bool:
        """One step size for all."""
        return True

    def figures(self) -> tuple[Global, ...]:
        """All but the mark of a skipped step and what is only handed in."""
        inputs = (Global.SKIP, Global.GRAD_SCALE, Global.CLIP_COEF, Global.FOUND_INF)
        return tuple(figure for figure in Global if figure not in inputs)

    def _look_at(self, figures: list[float]) -> None:
        super()._look_at(figures)
        assert self._runaway is not None
        self._runaway.look_at_gamma(self, figures, self.param_groups)

    def _more_of_groups(self, rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
        """``capped``: 1 where gamma is what ``max_lr`` lets through, else 0."""
        return {
            "capped": [
                float(row["scheduled_lr"] >= largest_gamma(group, row["k"]))
                for row, group in zip(rows, self.param_groups, strict=True)
            ]
        }

    @ends_with_its_passes
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float | Tensor] | None = None,
        *,
        loss: float | Tensor | None = None,
        clip_coef: float | Tensor | None = None,
    ) -> float | Tensor | None:
        """One step at the gradients in ``param.grad``.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()``, returns the loss.
            loss: the loss that ``backward()`` was called on: a 0-dim tensor on any device (never waited
                for) or a float. Without it that of ``report_loss`` or ``add_loss`` since the last step
                counts, and without these what the closure returned.
            clip_coef: the factor, at most 1 (on a device it is not looked at), by which the gradients were
                clipped before; the Polyak step is then that of the unclipped ones. Not together with
                ``max_grad_norm``.

        Returns:
            What the closure returned, if there is one, else the loss. Without a loss, and only when every
            ``lr`` is 0, state is allocated and nothing else happens (checkpoint loaders do that).

        Raises:
            RuntimeError: in eval mode, also if the closure changes to it.
            TypeError, ValueError: no loss; ``loss`` beside a closure that returned one; not a scalar, not a
                number; unusable gradients. Nothing has changed then, but what was reported is forgotten.
        """
        check_closure(closure)
        check_clip_coef(clip_coef)
        if closure is None and loss is None and not self.loss_reports and self._all_lr_zero():
            self._only_create_state()
            return None
        self.check_may_step()
        if clip_coef is not None and self.param_groups[0]["max_grad_norm"] is not None:
            raise ValueError(
                "step() got clip_coef, but max_grad_norm is "
                f"{self.param_groups[0]['max_grad_norm']}: clip in one place, outside or here"
            )
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
            self.check_may_step()
        reported = self.loss_reports.take()  # for this step alone, whether it counts or not
        if loss is not None and returned is not None:
            raise ValueError("step() got a loss and a closure that returned one; pass one of them")
        if loss is None:
            loss = returned if reported is None else reported
        if loss is None:
            raise ValueError(
                "step() got no loss (or the closure returned None); the Polyak step size needs it: "
                "call step(loss=loss), step(closure) with a closure that returns the loss, or "
                "report_loss(optimizer, loss) before step()"
            )
        taken = self._run_step(check_loss(loss), clip_coef=clip_coef)
        if taken and not self._no_gradients:
            assert self._runtime is not None
            gammas = self._runtime.engine.scheduled_lr
            for group, gamma in zip(self.param_groups, gammas, strict=True):
                group["scheduled_lr"] = gamma
        return loss if closure is None else returned

    @property
    def loss_reports(self) -> LossReports:
        """What was told of the losses since the last step; see ``report_loss`` and ``add_loss``."""
        if self._loss_reports is None:  # also after pickle and deepcopy, which do not take it along
            self._loss_reports = LossReports()
        return self._loss_reports

    def step_func(self, function_value: float | Tensor | None = None) -> float | Tensor | None:
        """Upstream's name for ``step(loss=function_value)``."""
        return self.step(loss=function_value)

    @of_the_inner
    def to_upstream_state_dict(self) -> dict[str, Any]:
        """A state dict that upstream's ``AdamCScheduleFreePlusPaper`` loads and continues from.

        Save the parameters with it, in the same mode. Each tensor's own count of steps is lost: upstream
        has one for the group.

        Raises:
            ValueError: ``polyak_beta`` is above 0, where upstream's running mean is another one; or
                ``max_lr``, ``max_grad_norm``, ``maximize``, ``f_star`` or a warmup that is not over is at
                work, which upstream does not have.
        """
        if any(group["polyak_beta"] > 0 for group in self.param_groups):
            raise ValueError(
                f"polyak_beta is {self.param_groups[0]['polyak_beta']}; expected 0: upstream keeps another "
                "running mean of the gradient's L1 norm and would not continue this run"
            )
        state_dict = self._upstream_state_dict(with_x_and_y=True)
        for group in state_dict["param_groups"]:
            group.update(grad_l1_ema=0.0, polyak_denom_ema=0.0)
        return state_dict
