"""Plans and what they were made from: a plan is kept as long as nothing that it names has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sfplus_kernels import ops
from sfplus_kernels.optim.tensor_state import TensorState


@dataclass
class KeptPlan:
    """The engine's plan for some tensors, with the addresses and the state that it was made from."""

    plan: object
    key: list[tuple]  # parameters, their addresses, the dtypes of their gradients
    state_key: tuple  # the state's identity, its size, its buffers in each group
    watched: list[tuple[TensorState, Tensor]]  # state of each parameter, its displacement
    entries: list[ops.Entry]
    gradient_key: list[tuple] = field(default_factory=list)
    operands: object = None  # as torch.compile gets to see its tensors: see operators.py

    @classmethod
    def make(
        cls,
        engine: ops.Engine,
        entries: Sequence[tuple[ops.Entry, TensorState]],
        key: list[tuple],
        state_key: tuple,
    ) -> KeptPlan:
        tensors = [entry for entry, _ in entries]
        watched = [(state, entry.displacement) for entry, state in entries]
        return cls(engine.plan(tensors), key, state_key, watched, tensors)

    def serves(self, key: list[tuple], state_key: tuple) -> bool:
        """Whether these tensors are where they were."""
        return (
            key == self.key
            and state_key == self.state_key
            and all(state.get("displacement") is e for state, e in self.watched)
        )


def step_keys(active: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[tuple], list[tuple]]:
    """What must stay for a step's plan to be kept, and for its gradient addresses to be."""
    try:
        key = [(id(p), p.data_ptr(), g.dtype) for p, g in active]
        return key, [(g.data_ptr(), g.stride()) for _, g in active]
    except (RuntimeError, NotImplementedError):  # a sparse gradient has no address
        return [], []


def move_key(params: Sequence[Any]) -> list[tuple]:
    """What must stay for a plan without gradients to be kept."""
    return [(id(p), p.data_ptr()) for p in params]
