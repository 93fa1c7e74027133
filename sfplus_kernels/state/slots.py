"""Where the counts of steps are: a row of ``RunState.tensors`` for each parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import STEP
from sfplus_kernels.contract.layout import Scalar
from sfplus_kernels.processes.sharding import local
from sfplus_kernels.state.containers import Containers, TensorState


class Slots:
    """Gives each ``state[p]["step"]`` a slot of its own, and a slot only once.

    Somebody may still hold what was in a slot: a state that was taken away and will be put back. So a slot
    that was given is not given again; where that would be needed, all begin anew with other memory.

    Args:
        scalars: ``RunState.tensors``, whose steps are all zero.
    """

    def __init__(self, scalars: Tensor) -> None:
        self._scalars = scalars
        self._first, self._width = scalars.data_ptr(), scalars.element_size() * len(Scalar)
        self._given: set[int] = set()

    def fit(self, containers: Containers) -> bool:
        """Whether each step is in its slot, and those that are yet to come find theirs free."""
        return all(
            slot not in self._given if state is None else self._holds(slot, state[STEP])
            for slot, state in _states(containers)
        )

    def take(self, containers: Containers) -> None:
        """Bring the steps that are elsewhere into their slots; ``state[p]["step"]`` become views."""
        with torch.inference_mode(False), torch.no_grad():
            strays = [
                (slot, state)
                for slot, state in _states(containers)
                if state is not None and not self._holds(slot, state[STEP])
            ]
            self._put(strays)

    def _put(self, strays: list[tuple[int, TensorState]]) -> None:
        if not strays:
            return
        scalars = self._scalars
        steps = [
            torch.as_tensor(_plain(state[STEP]), dtype=torch.float64).to(scalars.device).reshape(())
            for _, state in strays
        ]
        slots = torch.tensor([slot for slot, _ in strays]).to(scalars.device)
        scalars[slots, Scalar.STEP] = torch.stack(steps)
        for slot, state in strays:
            state[STEP] = scalars[slot, Scalar.STEP]
            self._given.add(slot)

    def _holds(self, slot: int, step: object) -> bool:
        return (
            isinstance(step, Tensor)
            and step.device == self._scalars.device
            and (step.dtype, step.dim()) == (torch.float64, 0)
            and step.data_ptr() == self._first + self._width * slot
        )


def _plain(step: object) -> object:
    return local(step) if isinstance(step, Tensor) else step


def _states(containers: Containers) -> Iterable[tuple[int, TensorState | None]]:
    return ((slot, containers.own_state(param)) for _, slot, param in containers.places())
