"""Plans and what they were made from: a plan is kept as long as nothing that it names has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sfplus_kernels import ops
from sfplus_kernels.optim.tensor_state import TensorState
from sfplus_kernels.sharding import local


@dataclass
class KeptPlan:
    """The engine's plan for some tensors, with the addresses and the state that it was made from."""

    plan: object
    key: list[tuple]  # parameters, their addresses, the dtypes of their gradients
    state_key: tuple  # the state's identity, its size, its buffers in each group
    watched: list[tuple[TensorState, Tensor]]  # state of each parameter, its displacement
    shards: frozenset[int]  # among how many processes the tensors are divided
    gradient_key: list[tuple] = field(default_factory=list)

    @classmethod
    def make(
        cls,
        engine: ops.Engine,
        entries: Sequence[tuple[ops.Entry, TensorState]],
        key: list[tuple],
        state_key: tuple,
    ) -> KeptPlan:
        plan = engine.plan([entry for entry, _ in entries])
        watched = [(state, state["displacement"]) for _, state in entries]
        return cls(plan, key, state_key, watched, frozenset(e.shards for e, _ in entries))

    def bring_gradients(
        self, engine: ops.Engine, gradients: Sequence[Tensor], *, recording: bool
    ) -> None:
        """Tell the plan where this step's gradients are, before the passes that read them.

        A step that is recorded into a CUDA graph gets a table of its own, which replays read; the next step
        does not use it.
        """
        key = gradient_key(gradients)
        engine.set_gradients(self.plan, gradients, moved=recording or key != self.gradient_key)
        self.gradient_key = [] if recording else key

    def serves(self, key: list[tuple], state_key: tuple) -> bool:
        """Whether these tensors are where they were."""
        return (
            key == self.key
            and state_key == self.state_key
            and all(state.get("displacement") is e for state, e in self.watched)
        )


def step_key(active: Sequence[tuple[Tensor, Tensor]]) -> list[tuple]:
    """What must stay for the plan of a step, with these parameters and gradients, to be kept."""
    return [(id(p), local(p).data_ptr(), g.dtype, g.layout, g.shape) for p, g in active]


def gradient_key(gradients: Sequence[Tensor]) -> list[tuple]:
    """What must stay for the plan to know already where gradients are."""
    return [(g.data_ptr(), g.stride()) for g in gradients]


def move_key(params: Sequence[Tensor]) -> list[tuple]:
    """What must stay for a plan without gradients to be kept."""
    return [(id(p), local(p).data_ptr()) for p in params]
