"""What is derived from an optimizer's containers, kept as long as it is true to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from sfplus_kernels.contract.capture import capturing, check_not_capturing
from sfplus_kernels.contract.layout import Global
from sfplus_kernels.engine.delayed_figures import DelayedFigures
from sfplus_kernels.engine.engine import Engine, Passes
from sfplus_kernels.engine.plans import KeptPlan, move_key, state_key, step_key
from sfplus_kernels.processes.sharding import local
from sfplus_kernels.state import run
from sfplus_kernels.state.checks import check_gradient, check_parameters
from sfplus_kernels.state.containers import Containers
from sfplus_kernels.state.tensors import create_missing_state, make_entries

LOOK_EVERY = 8
"""Steps from one look at the figures to the next: each costs two small copies."""


class Runtime:
    """Engine, plans and figures of one optimizer: all of it can be thrown away and made again.

    Args:
        backend: name of a backend, or None for the best one.
        containers: the optimizer's. They are handed in anew at each call and not kept.
        global_keys: see ``Algorithm.global_keys``.

    Raises:
        RuntimeError: the backend is unavailable, or a CUDA graph is being captured.
        TypeError, ValueError: parameters that cannot be used.
    """

    def __init__(
        self, backend: str | None, containers: Containers, global_keys: Mapping[str, Global]
    ) -> None:
        params = containers.params
        check_not_capturing(params[0].device)
        check_parameters(params)
        self.engine = Engine(backend, params[0].device, len(containers.groups), len(params))
        run.fill(self.engine.run, containers.groups, global_keys)
        self.kept: KeptPlan | None = None  # the plan of the last step
        self._kept_moves: dict[str, KeptPlan] = {}  # by what each is for
        self._delayed: DelayedFigures | None = None
        self._each_step = False  # whether every step sends its figures
        self._until_look = LOOK_EVERY

    # -- plans --------------------------------------------------------------------------------------

    def step_plan(self, containers: Containers, gradients: Sequence[Tensor | None]) -> KeptPlan:
        """The plan of a step: the last one if nothing moved, else a new one.

        Args:
            gradients: of each parameter's gradient what this process holds (``local_gradients``).

        Raises:
            RuntimeError, TypeError, ValueError: unusable parameters, gradients or state; nothing has changed.
        """
        params = containers.params
        active = [p for p, g in zip(params, gradients, strict=True) if g is not None]
        present = [g for g in gradients if g is not None]
        key = step_key(active, present)
        if self.kept is not None and self.kept.serves(key, state_key(containers)):
            return self.kept

        check_not_capturing(params[0].device)
        check_parameters(params)
        for index, (param, grad) in enumerate(zip(params, gradients, strict=True)):
            if grad is not None:
                check_gradient(local(param), grad, index)
        create_missing_state(containers, gradients)
        dtypes = {id(p): g.dtype for p, g in zip(active, present, strict=True)}
        entries = make_entries(containers, active, self.engine.run.tensors, dtypes)
        self.kept = KeptPlan.make(self.engine, entries, key, state_key(containers))
        return self.kept

    def move_plan(self, containers: Containers, params: list[Tensor], purpose: str) -> object:
        """The engine's plan for a pass that reads no gradients; one is kept for each ``purpose``."""
        key = move_key(params)
        last = self._kept_moves.get(purpose)
        if last is None or not last.serves(key, state_key(containers)):
            check_not_capturing(params[0].device)
            entries = make_entries(containers, params, self.engine.run.tensors)
            last = KeptPlan.make(self.engine, entries, key, state_key(containers))
            self._kept_moves[purpose] = last
        return last.plan

    # -- the step -----------------------------------------------------------------------------------

    def ready(self, containers: Containers, gradients: Sequence[Tensor | None]) -> ReadyStep:
        """Everything checked and prepared for the passes over this step's gradients."""
        kept = self.step_plan(containers, gradients)
        present = [g for g in gradients if g is not None]
        kept.bring_gradients(self.engine, present, recording=capturing(self.engine.device))
        active = [p for p, g in zip(containers.params, gradients, strict=True) if g is not None]
        return ReadyStep(self.engine, kept, active, present)

    def run_passes(self, passes: Passes) -> None:
        """Take the step that was made ready last."""
        assert self.kept is not None
        self.engine.run_passes(self.kept.plan, self.engine.run, passes)
        self.send_figures()

    # -- figures ------------------------------------------------------------------------------------

    def send_figures(self) -> None:
        """To the host, where somebody asked for those of every step without waiting."""
        if self._each_step:
            self._sender().send()

    def newest_figures(self) -> list[float] | None:
        """The newest that have arrived on the host; from the first call on each step sends its own."""
        if not self._each_step:
            self._each_step = True
            self._sender().send()
        return self._sender().newest()

    def figures_to_look_at(self) -> list[float] | None:
        """At every eighth call the newest that have arrived, of some step before; else None."""
        self._until_look -= 1
        if self._until_look > 0 or capturing(self.engine.device):
            return None
        self._until_look = LOOK_EVERY
        if not self._each_step:
            self._sender().send()
        return self._sender().newest()

    def _sender(self) -> DelayedFigures:
        if self._delayed is None:
            self._delayed = DelayedFigures(self.engine)
        return self._delayed


class ReadyStep(NamedTuple):
    """A step that only has to be taken: its gradients are where the plan expects them."""

    engine: Engine
    kept: KeptPlan
    params: list[Tensor]  # those with a gradient
    gradients: list[Tensor]  # kept alive until the step is taken


class HeldStep(NamedTuple):
    """A step of which nothing is left to do but ``runtime.run_passes(passes)``."""

    runtime: Runtime
    passes: Passes
    gradients: list[Tensor]
