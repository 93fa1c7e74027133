"""An optimizer's own containers, as one step finds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from sfplus_kernels.contract.formats import BUFFERS, STEP

TensorState = dict[str, Any]
"""The state of one parameter: its buffers and its count of steps by name, and whatever others put there."""


@dataclass(frozen=True)
class Containers:
    """What a step or a move reads of an optimizer, taken afresh each time.

    Trainers, pruners and loaders replace and change all of it between two steps: nobody keeps it longer than
    the call that it was handed to.
    """

    groups: list[dict[str, Any]]  # param_groups itself
    state: MutableMapping[Tensor, TensorState]  # the optimizer's state itself
    buffers: list[tuple[str, ...]]  # which a parameter of each group has; see formats
    twice_a_step: bool  # whether y and x are written into the parameters in turn
    rank: int = 0  # of this process among those that plain tensors are divided among

    @property
    def formats(self) -> list[str]:
        """In which of ``formats.STATE_FORMATS`` each group keeps them."""
        return [group["state_format"] for group in self.groups]

    @property
    def projected(self) -> list[bool]:
        """Whether the rows of each group's parameters get a fixed norm."""
        return [group["row_norm"] is not None for group in self.groups]

    @cached_property
    def params(self) -> list[Tensor]:
        """Of all groups, in their order."""
        return [param for group in self.groups for param in group["params"]]

    @cached_property
    def touched(self) -> list[tuple[int, Tensor]]:
        """(index, parameter) of those that a step or a move may touch.

        A frozen parameter is none of them: it may be of any dtype, and anywhere.
        """
        return [
            (index, param)
            for index, param in enumerate(self.params)
            if param.requires_grad or param.grad is not None or self.own_state(param)
        ]

    def own_state(self, param: Tensor) -> TensorState | None:
        """What is kept of a parameter, if there is anything of ours in it."""
        state = self.state.get(param)
        return state if has_own(state) else None

    def places(self) -> Iterator[tuple[int, int, Tensor]]:
        """(group, slot, parameter) of each: its slot is its number among all of them."""
        slot = 0
        for index, group in enumerate(self.groups):
            for param in group["params"]:
                yield index, slot, param
                slot += 1


def has_own(state: Mapping[str, Any] | None) -> bool:
    """Whether there is anything of ours in what is kept of a parameter, beside what others put there."""
    return bool(state) and any(name in state for name in (*BUFFERS, STEP))  # type: ignore[operator]
