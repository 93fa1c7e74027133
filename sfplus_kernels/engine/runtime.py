"""What is derived from an optimizer's containers, kept as long as it is true to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfplus_kernels.contract.capture import capturing, check_not_capturing
from sfplus_kernels.contract.layout import Global, Scalar
from sfplus_kernels.engine.delayed_figures import DelayedFigures
from sfplus_kernels.engine.drift import check_watchable, drift_of_all
from sfplus_kernels.engine.engine import Engine, Passes
from sfplus_kernels.engine.plans import KeptPlan
from sfplus_kernels.engine.validity import all_plain
from sfplus_kernels.processes.collective import Collective
from sfplus_kernels.processes.sharding import local, local_gradients
from sfplus_kernels.state import run
from sfplus_kernels.state.checks import check_containers, check_gradient
from sfplus_kernels.state.containers import Containers
from sfplus_kernels.state.slots import Slots
from sfplus_kernels.state.tensors import bring_to_parameters, create_missing_state, make_entries

LOOK_EVERY = 8
"""Steps from one look at the figures to the next: each costs two small copies."""


class Runtime:
    """Engine, plans and figures of one optimizer: all of it can be thrown away and made again.

    A plan is used only after a look that all it was made from is as it was (validity.py). What the engine
    keeps in rows, by the number of a group or a parameter, is used only as long as each of them is what it
    was (``serves``); else all is made anew from the containers.

    Args:
        backend: name of a backend, or None for the best one.
        containers: the optimizer's. They are handed in anew at each call and not kept.
        global_keys: see ``Algorithm.global_keys``.

    Raises:
        RuntimeError: the backend is unavailable, or a CUDA graph is being captured.
        TypeError, ValueError: parameters that cannot be used.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self, backend: str | None, containers: Containers, global_keys: Mapping[str, Global]
    ) -> None:
        device = device_of(containers)
        check_not_capturing(device)
        check_containers(containers)
        self._groups = list(containers.groups)  # those whose run state the engine has
        self._layout = _layout(containers)
        self._global_keys = global_keys
        sizes = [len(group["params"]) for group in self._groups]
        began = any(containers.own_state(param) for param in containers.params)
        betas = [float(group["y_beta"]) for group in self._groups] if began else None
        self.engine = Engine(backend, device, sizes, betas)
        run.fill(self.engine.run, self._groups, global_keys)
        self.note_shown()
        self._slots = Slots(self.engine.run.tensors)
        bring_to_parameters(containers)
        self._slots.take(containers)
        self.kept: KeptPlan | None = None  # the plan of the last step
        self._kept_moves: dict[str, KeptPlan] = {}  # by what each is for
        self._delayed: DelayedFigures | None = None
        self._each_step = False  # whether every step sends its figures
        self.watches = False  # whether the update pass forms the sums of layout.Drift
        self.drift_of_copies: Tensor | None = (
            None  # where the last step was on copies of the tensors
        )
        self._until_look = LOOK_EVERY

    # -- truth --------------------------------------------------------------------------------------

    def has_groups(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether these are the groups that it was made for."""
        return len(groups) == len(self._groups) and all(map(is_, groups, self._groups))

    def serves(self, containers: Containers) -> bool:
        """Whether rows and slots are still those of these groups and parameters."""
        return (
            self.has_groups(containers.groups)
            and self._layout == _layout(containers)
            and self.engine.device == device_of(containers)
            and self._slots.fit(containers)
        )

    def save(self) -> None:
        """Write the run state into the groups that this was made for (one synchronisation)."""
        run.into_groups(self.engine.figures().tolist(), self._groups, self._global_keys)
        self.note_shown()

    def note_shown(self) -> None:
        """What the groups show now was not written by a user."""
        self._shown = run.shown(self._groups, self._global_keys)

    def take_over_what_was_written(self) -> None:
        """If a user wrote ``k`` or its like into a group, go on from there."""
        now = run.shown(self._groups, self._global_keys)
        if now != self._shown:
            run.take_over(self.engine.run, self._shown, now, self._global_keys)
            self._shown = now

    def b_of(self, containers: Containers, param: Tensor) -> Tensor:
        """beta with which y of a parameter was written: 0-dim, float64, on its device."""
        slot = next(slot for _, slot, other in containers.places() if other is param)
        return self.engine.run.tensors[slot, Scalar.Y_BETA]

    # -- plans --------------------------------------------------------------------------------------

    def step_plan(self, containers: Containers, gradients: Sequence[Tensor | None]) -> KeptPlan:
        """The plan of a step: the last one if nothing moved, else a new one.

        Args:
            gradients: of each parameter's gradient what this process holds (``local_gradients``).

        Raises:
            RuntimeError, TypeError, ValueError: unusable parameters, gradients or state; nothing has changed.
        """
        if self.kept is not None and not self.kept.reads_grad:
            seen = self.kept.look(containers, list(gradients))
            if seen is not None:
                return self.kept
        return self._new_step_plan(containers, gradients)

    def _new_step_plan(
        self, containers: Containers, gradients: Sequence[Tensor | None], *, plain: bool = False
    ) -> KeptPlan:
        params = containers.params
        check_not_capturing(self.engine.device)
        check_containers(containers)
        for index, (param, grad) in enumerate(zip(params, gradients, strict=True)):
            if grad is not None:
                check_gradient(local(param), grad, index)
        create_missing_state(containers, gradients)
        bring_to_parameters(containers)
        self._slots.take(containers)
        pairs = list(zip(params, gradients, strict=True))
        dtypes = {id(p): g.dtype for p, g in pairs if g is not None}
        active = [p for p, g in pairs if g is not None]
        entries = make_entries(containers, active, dtypes)
        reads = True if plain else list(gradients)
        self.kept = KeptPlan.make(
            self.engine, containers, entries, reads, active, watched=self.watches
        )
        waiting = [p for p, g in pairs if g is None]
        idle = make_entries(containers, waiting)
        if idle:
            touched = [entry.param for entry in idle]
            self.kept.idle = KeptPlan.make(self.engine, containers, idle, False, touched)
        return self.kept

    def move_plan(self, containers: Containers, params: list[Tensor], purpose: str) -> object:
        """The engine's plan for a pass that reads no gradients; one is kept for each ``purpose``."""
        last = self._kept_moves.get(purpose)
        if (
            last is None
            or len(last.chosen) != len(params)
            or not all(map(is_, last.chosen, params))
            or last.look(containers, False) is None
        ):
            check_not_capturing(self.engine.device)
            check_containers(containers)
            bring_to_parameters(containers)
            self._slots.take(containers)
            entries = make_entries(containers, params)
            last = KeptPlan.make(self.engine, containers, entries, False, params)
            self._kept_moves[purpose] = last
        return last.plan

    # -- the step -----------------------------------------------------------------------------------

    def ready_as_before(self, containers: Containers) -> ReadyStep | None:
        """A step like the last one, prepared; None if anything is not as it was then."""
        kept = self.kept
        if kept is None or not self.has_groups(containers.groups):
            return None
        seen = kept.look(
            containers, True if kept.reads_grad else local_gradients(containers.params)
        )
        if seen is None:
            return None
        gradients, moved = seen
        recording = capturing(self.engine.device)
        kept.bring_gradients(self.engine, gradients, moved=moved, recording=recording)
        return ReadyStep(self.engine, kept, gradients)

    def ready(self, containers: Containers) -> ReadyStep:
        """Everything checked and prepared for the passes over this step's gradients."""
        gradients = local_gradients(containers.params)
        kept = self._new_step_plan(containers, gradients, plain=all_plain(containers))
        present = [grad for grad in gradients if grad is not None]
        recording = capturing(self.engine.device)
        kept.bring_gradients(self.engine, present, moved=True, recording=recording)
        return ReadyStep(self.engine, kept, present)

    def run_passes(self, passes: Passes) -> None:
        """Take the step that was made ready last."""
        assert self.kept is not None
        self.drift_of_copies = None
        self.engine.run_passes(self.kept.plan, self.engine.run, passes)
        self.after_passes()

    @property
    def shifts_idle(self) -> bool:
        """Whether tensors without a gradient are moved after the passes, since beta may have changed."""
        return self.kept is not None and self.kept.idle is not None and self.engine.moves_beta

    def after_passes(self) -> None:
        """Beside the passes of a step: tensors without a gradient follow beta; figures are sent."""
        if self.shifts_idle:
            assert self.kept is not None
            assert self.kept.idle is not None
            self.engine.shift_to_group(self.kept.idle.plan)
            self.kept.idle.count_writes()
        if self._each_step:
            self._sender().send()

    # -- figures ------------------------------------------------------------------------------------

    def watch(self, watches: bool) -> None:
        """Whether steps form the sums of ``layout.Drift`` from now on.

        Raises:
            RuntimeError: a CUDA graph has recorded steps.
        """
        if watches == self.watches:
            return
        check_watchable(self.engine)
        self.watches = watches
        self.kept, self._delayed, self.drift_of_copies = None, None, None

    def figures(self, collective: Collective | None = None) -> Tensor:
        """Those of the engine; where it ``watches`` also its ``group_coefs``, and ``drift_of_all``.

        Args:
            collective: with whom the sums are added up, together; None: of what this process holds.
        """
        if not self.watches:
            return self.engine.figures()
        coefs = self.engine.run.group_coefs
        sums = drift_of_all(self.engine, self.kept, self.drift_of_copies)
        if collective is not None:
            sums = collective.total_drift(sums)
        return torch.cat([self.engine.figures(), coefs.flatten(), sums.flatten()])

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
            self._delayed = DelayedFigures(self.engine, self.figures)
        return self._delayed


class ReadyStep(NamedTuple):
    """A step that only has to be taken: its gradients are where the plan expects them."""

    engine: Engine
    kept: KeptPlan
    gradients: list[Tensor]  # kept alive until the step is taken


class HeldStep(NamedTuple):
    """A step of which nothing is left to do but ``runtime.run_passes(passes)``."""

    runtime: Runtime
    passes: Passes
    gradients: list[Tensor]


def device_of(containers: Containers) -> torch.device:
    """Where the step is: with the first parameter that it may touch, or where all are frozen, the first."""
    touched = containers.touched
    first = touched[0][1] if touched else next(iter(containers.params), None)
    return torch.device("cpu") if first is None else first.device


def _layout(containers: Containers) -> list[list[int]]:
    return [list(map(id, group["params"])) for group in containers.groups]
