"""Plans and what they were made from: a plan is kept as long as nothing that it names has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sfplus_kernels.backends.tensor_reader import increment_version
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.engine.engine import Engine
from sfplus_kernels.engine.validity import Gradients, Seen, Witness, new_witness
from sfplus_kernels.state.containers import Containers


@dataclass
class KeptPlan:
    """The engine's plan for some tensors, and the witness of what it was made from."""

    plan: object
    entries: list[Entry]
    shards: frozenset[int]  # among how many processes the tensors are divided
    reads_grad: bool  # whether the witness reads ``p.grad`` itself
    buffers: list[tuple[str, ...]]  # of each group, as the containers had them; below too
    formats: list[str]
    projected: list[bool]
    chosen: list[Tensor]  # the parameters of a move, or those of a step that have a gradient
    witness: Witness = field(default_factory=new_witness)
    recorded: bool = False  # whether the gradients were brought to the table of a CUDA graph last
    idle: KeptPlan | None = (
        None  # of a step: a move of the tensors with state that have no gradient
    )
    operands: object = None  # as torch.compile gets to see its tensors: see compiling/operator.py

    @classmethod
    def make(
        cls,
        engine: Engine,
        containers: Containers,
        entries: Sequence[Entry],
        gradients: Gradients,
        chosen: Sequence[Tensor],
        *,
        watched: bool = False,
    ) -> KeptPlan:
        """A new plan of ``entries``, which are those of ``containers``.

        Args:
            gradients: what a witness is to read.
            chosen: parameters of a move; of a step those with a gradient.
        """
        kept = cls(
            plan=engine.plan(entries, watched=watched),
            entries=list(entries),
            shards=frozenset(entry.shards for entry in entries),
            reads_grad=gradients is True,
            buffers=containers.buffers,
            formats=containers.formats,
            projected=containers.projected,
            chosen=list(chosen),
        )
        kept.witness.note(containers.groups, containers.state, gradients)
        return kept

    def look(self, containers: Containers, gradients: Gradients) -> Seen | None:
        """What a step finds, or None if this plan is not one for these containers any more."""
        if self.buffers != containers.buffers or self.formats != containers.formats:
            return None
        if self.projected != containers.projected:
            return None
        return self.witness.look(containers.groups, containers.state, gradients)

    def bring_gradients(
        self, engine: Engine, gradients: Sequence[Tensor], *, moved: bool, recording: bool
    ) -> None:
        """Tell the plan where this step's gradients are, before the passes that read them.

        A step that is recorded into a CUDA graph gets a table of its own, which replays read; the next step
        does not use it.
        """
        engine.set_gradients(self.plan, gradients, moved=moved or recording or self.recorded)
        self.recorded = recording

    def count_writes(self) -> None:
        """Tell torch that the parameters were written, which kernels do through addresses."""
        increment_version(self.chosen)
