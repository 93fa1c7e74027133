"""One Polyak step size for several optimizers in one process."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sfplus_kernels.core.hyperparameters import check_shared
from sfplus_kernels.engine.runtime import ReadyStep
from sfplus_kernels.processes.collective import Collective


class Member(Protocol):
    """An optimizer, as far as a shared step knows it."""

    param_groups: list[dict[str, Any]]

    @property
    def shared_arguments(self) -> tuple[str, ...]:
        """The arguments that must be the same in all groups."""

    def check_may_step(self) -> None:
        """Raise RuntimeError if this is no time for a step."""

    def any_gradient(self) -> bool:
        """Whether any parameter has one."""

    def ready(self) -> ReadyStep:
        """Everything checked and prepared for the passes over this step's gradients."""


class SharedStep:
    """Given to several ``AdamCScheduleFreePlus``, it makes their steps those of one with all parameters.

    For models whose parts have optimizers of their own: on several devices of one process, or where a
    trainer insists on it. Each is stepped once after a backward pass, in any order and with the same loss;
    the first of them forms the sums over the gradients of all.

        shared = SharedStep()
        first = AdamCScheduleFreePlus(encoder.parameters(), shared_step=shared)
        second = AdamCScheduleFreePlus(decoder.parameters(), shared_step=shared)
        ...
        loss.backward()
        first.step(loss=loss)
        second.step(loss=loss)

    Gradients of all members are scaled, unscaled and clipped alike before the first of them steps. A copy
    or a pickle of an optimizer shares its step with nobody. An optimizer whose global settings (those that
    groups must agree in) are not the ones of the first is refused when it is made, with a ValueError.
    """

    def __init__(self) -> None:
        self._members: list[weakref.ref[Member]] = []
        # those that have not taken the present sums yet
        self._waiting: weakref.WeakSet[Member] = weakref.WeakSet()
        self._sums: Tensor | None = None  # (1, len(Sum))
        self._figures: Tensor | None = None  # Global's, of the one that formed them

    @property
    def members(self) -> Sequence[Member]:
        """The optimizers that share the step, in the order in which they were made."""
        return [member for ref in self._members if (member := ref()) is not None]

    def join(self, optimizer: Member) -> None:
        """Add an optimizer.

        Raises:
            ValueError: its global settings are others than those of the ones that are here.
        """
        groups = [member.param_groups[0] for member in (*self.members, optimizer)]
        check_shared(groups, optimizer.shared_arguments)
        self._members.append(weakref.ref(optimizer))

    def any_gradient(self) -> bool:
        """Whether any parameter of any member has one."""
        return any(member.any_gradient() for member in self.members)

    def sums(self, member: Member, ready: ReadyStep, collective: Collective | None) -> Tensor:
        """The sums over the gradients of all members, for the step of ``member``.

        Raises:
            RuntimeError, TypeError, ValueError: another member cannot step; nothing has changed.
        """
        if member not in self._waiting:
            self._form(member, ready, collective)
        self._waiting.discard(member)
        assert self._sums is not None
        assert self._figures is not None
        engine = ready.engine
        if engine.run.globals is not self._figures and collective is not None:
            engine.adopt(self._figures)
        return self._sums.to(engine.device, non_blocking=True)

    def _form(self, first: Member, ready: ReadyStep, collective: Collective | None) -> None:
        others = [member for member in self.members if member is not first]
        for member in others:
            member.check_may_step()
        everyone = {id(first): ready, **{id(member): member.ready() for member in others}}
        engine = ready.engine
        sums = torch.zeros(1, 3, dtype=torch.float64, device=engine.device)
        for member in self.members:
            one = everyone[id(member)]
            partials = one.engine.reduce(one.kept.plan, with_e=True)
            sums += partials.sum(0, keepdim=True).to(engine.device, non_blocking=True)
        if collective is not None:
            sums = engine.share(collective, sums, engine.run.globals, self.any_gradient()).clone()
        self._sums, self._figures = sums, engine.run.globals
        self._waiting.update(self.members)
