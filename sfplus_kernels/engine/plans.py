"""Plans and what they were made from: a plan is kept as long as nothing that it names has moved.

What is looked at in every step is looked at in ``map``: a comprehension takes two to three times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter, is_, itemgetter

from torch import Tensor

from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.engine.engine import Engine
from sfplus_kernels.processes.sharding import local_parts
from sfplus_kernels.state.checks import check_gradient
from sfplus_kernels.state.containers import Containers, TensorState

ADDRESS, NUMEL, STRIDES = Tensor.data_ptr, Tensor.numel, Tensor.stride
DTYPE, LAYOUT = attrgetter("dtype"), attrgetter("layout")
DISPLACEMENT = itemgetter("displacement")


@dataclass
class KeptPlan:
    """The engine's plan for some tensors, with the addresses and the state that it was made from."""

    plan: object
    key: tuple  # parameters, their memory, the dtypes of their gradients
    state_key: tuple  # the state's identity, its size, its buffers in each group
    entries: list[Entry]
    states: list[TensorState]
    displacements: list[Tensor]  # of each state
    shards: frozenset[int]  # among how many processes the tensors are divided
    gradient_key: tuple = field(default_factory=tuple)
    operands: object = None  # as torch.compile gets to see its tensors: see compiling/operator.py

    @classmethod
    def make(
        cls,
        engine: Engine,
        entries: Sequence[tuple[Entry, TensorState]],
        key: tuple,
        state_key: tuple,
    ) -> KeptPlan:
        tensors = [entry for entry, _ in entries]
        states = [state for _, state in entries]
        return cls(
            plan=engine.plan(tensors),
            key=key,
            state_key=state_key,
            entries=tensors,
            states=states,
            displacements=list(map(DISPLACEMENT, states)),
            shards=frozenset(entry.shards for entry in tensors),
        )

    def bring_gradients(
        self, engine: Engine, gradients: Sequence[Tensor], *, recording: bool
    ) -> None:
        """Tell the plan where this step's gradients are, before the passes that read them.

        A step that is recorded into a CUDA graph gets a table of its own, which replays read; the next step
        does not use it.
        """
        key = list(map(ADDRESS, gradients)), list(map(STRIDES, gradients))
        moved = recording or key != self.gradient_key
        if moved and 0 in key[0]:  # no memory, for the checks of a new plan have not seen this one
            for entry, gradient in zip(self.entries, gradients, strict=True):
                check_gradient(entry.param, gradient, entry.slot)
        engine.set_gradients(self.plan, gradients, moved=moved)
        self.gradient_key = () if recording else key

    def serves(self, key: tuple, state_key: tuple) -> bool:
        """Whether these tensors are where they were."""
        if key != self.key or state_key != self.state_key:
            return False
        try:
            return all(map(is_, map(DISPLACEMENT, self.states), self.displacements))
        except KeyError:  # a state was emptied
            return False


def step_key(params: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple:
    """What must stay for the plan of a step, with these parameters and gradients, to be kept."""
    return *move_key(params), list(map(DTYPE, gradients)), list(map(LAYOUT, gradients))


def move_key(params: Sequence[Tensor]) -> tuple:
    """What must stay for a plan without gradients to be kept."""
    parts = local_parts(params)
    # number and strides too: p.data may become a part of what it was, or that transposed
    return (
        list(map(id, params)),
        list(map(ADDRESS, parts)),
        list(map(NUMEL, parts)),
        list(map(STRIDES, parts)),
    )


def state_key(containers: Containers) -> tuple:
    """What must stay of the state for any plan to be kept."""
    return (id(containers.state), len(containers.state), *containers.buffers)
