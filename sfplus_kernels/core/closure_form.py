"""A closure form: the parameters hold x between steps, so no ``train()`` or ``eval()`` is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.layout import Hyper
from sfplus_kernels.core.given_lr import GivenLrOptimizer
from sfplus_kernels.core.hyperparameters import check_closure
from sfplus_kernels.core.modes import ScheduleFreeOptimizer
from sfplus_kernels.state.iterates import Iterates


class ClosureForm(ScheduleFreeOptimizer, GivenLrOptimizer):
    """What a closure form adds to an optimizer: y exists only while the closure runs.

    In terms of the displacement form the parameter is y written with b = 1, which is x. A step moves it
    to y of the group's beta, calls the closure, and is then a step with beta_k = 1, which leaves x.
    Parameters without a gradient move back (where a step may be skipped, all do). Each such move is 12
    bytes of traffic more per float32 parameter.
    """

    has_modes = False  # the parameters are always y, between steps with b = 1
    twice_a_step = True
    why_not_monitored = (
        "the update pass of the closure forms goes from y to x, and not from one y to the next; take the "
        "class of this name without 'Closure'"
    )
    # Tensors of (n_groups,) that ``Engine.shift`` takes, and what they were made from.
    _betas: tuple[tuple[float, ...], Tensor, Tensor] | None = None

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """A row of ``layout.Hyper``, with the beta that the parameters have at rest."""
        row = list(super().hyper_row(group))
        row[Hyper.SF_BETA1] = 1.0
        return tuple(row)

    def beta_of(self, group: Mapping[str, Any]) -> float:
        """beta of y, where the closure is called."""
        return super().hyper_row(group)[Hyper.SF_BETA1]

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """As upstream."""
        return 0.0

    def train(self, mode: bool = True) -> None:
        """Does nothing: for code that is written for the other classes."""

    def eval(self) -> None:
        """Does nothing: the parameters hold x."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Does nothing: the parameters hold x, except while ``step`` calls its closure."""
        yield

    @torch.no_grad()
    def iterates(self, param: Tensor) -> Iterates:
        """x (the parameter), y (where the next closure will be called) and z."""
        x, _, z = super().iterates(param)
        group = next(g for g in self.param_groups if any(param is p for p in g["params"]))
        return Iterates(x=x, y=x + (1 - self.beta_of(group)) * (z - x), z=z)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float | Tensor] | None = None,
        *,
        loss: float | Tensor | None = None,
        clip_coef: float | Tensor | None = None,
    ) -> float | Tensor | None:
        """One step at the gradients that ``closure`` leaves in ``param.grad``.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()``, returns the loss. If it
                raises, the parameters are back at x (to rounding) and nothing else has changed.
            loss, clip_coef: not needed here; taken, so that one loop serves all classes.

        Returns:
            What the closure returned.

        Raises:
            TypeError, ValueError: no closure; unusable gradients or hyperparameters. Without a closure,
                only when every ``lr`` is 0, state is allocated and nothing else happens (checkpoint loaders
                do that).
        """
        check_closure(closure)
        if closure is None and self._all_lr_zero():
            self._only_create_state()
            return None
        if closure is None:
            raise ValueError(
                f"{type(self).__name__}.step() got no closure; expected one that clears the gradients, "
                "computes the loss, calls backward() and returns the loss, since only then the "
                "parameters hold y. Or use the class of this name without 'Closure'"
            )
        self._check_groups()
        moved = self._parameters_with_state()
        y_betas, ones = self._beta_tensors()
        self._shift(moved, "modes", y_betas)
        try:
            with torch.enable_grad():
                loss = closure()
            self._advance()
        except BaseException:
            self._shift(moved, "modes", ones)
            raise
        if self.looks_first:  # the host does not know whether it was skipped
            self._shift(moved, "modes", ones)
        else:
            self._shift([p for p in moved if p.grad is None], "left behind", ones)
        return loss

    def _beta_tensors(self) -> tuple[Tensor, Tensor]:
        """What ``Engine.shift`` takes to move all parameters to y, and to x."""
        values = tuple(self.beta_of(group) for group in self.param_groups)
        device = self._get_runtime().engine.device
        if self._betas is None or self._betas[0] != values or self._betas[1].device != device:
            y_betas = torch.tensor(values, dtype=torch.float64).to(device)
            self._betas = (values, y_betas, torch.ones_like(y_betas))
        return self._betas[1:]

    def _shift(self, params: list[Tensor], purpose: str, betas: Tensor) -> None:
        """Rewrite parameters as y of ``betas``; those that are so already stay."""
        if params:
            runtime = self._get_runtime()
            plan = runtime.move_plan(self._containers(), params, purpose)
            runtime.engine.shift(plan, betas)
            torch.autograd.graph.increment_version(params)
