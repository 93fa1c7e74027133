"""Where the arrays of a step's passes lie, so that loops can run over that very memory.

Pages differ: over an arena that was the process's first memory loops took a tenth more time than over tensors
that were made later, and a pass over these would have been quicker than its ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from bench.work import traffic
from bench.work.arrays import Arrays
from sfplus_kernels.contract.backend import Entry

BLOCK = 64
"""Elements that a loop takes at once; fewer at the end of a tensor are left out."""

WIDTHS = (1, 2, 4, 8)


class Memory(NamedTuple):
    """Tensors side by side: for each parameter those that are changed, then those only read."""

    tensors: tuple[tuple[Tensor, ...], ...]

    @property
    def numel(self) -> int:
        """Elements of each array in whole blocks."""
        return sum(side[0].numel() // BLOCK * BLOCK for side in self.tensors)


def of_pass(
    pass_name: str, entries: Sequence[Entry], params: Sequence[nn.Parameter]
) -> tuple[Arrays, Memory] | None:
    """The arrays that a pass over ``entries`` touches; None where a loop cannot go over them.

    Args:
        params: with the gradients, which entries do not have.
    """
    gradients = {param.data_ptr(): param.grad for param in params}
    most = traffic.largest(entries)
    read, written = traffic.arrays(pass_name, most)
    names = [*written, *(name for name in read if name not in written)]
    tensors = tuple(tuple(_tensor(name, e, gradients) for name in names) for e in entries)
    arrays = traffic.pass_arrays(pass_name, most)
    alike = all(
        one is not None and one.numel() == entry.param.numel()
        for entry, side in zip(entries, tensors, strict=True)
        for one in side
    )
    if not (names and alike and {*arrays.changed, *arrays.read} <= {*WIDTHS}):
        return None
    return arrays, Memory(tensors)


def of_step(
    optimizer: Any, step: Callable[[], Any], params: Sequence[nn.Parameter]
) -> dict[tuple[Arrays, ...], tuple[Memory, ...]]:
    """The arrays of the passes of one of our optimizers on a compiled backend, and where these lie.

    Nothing where a loop cannot go over those of one of its passes. Takes a step.
    """
    recorder = traffic.record_step(optimizer, step)
    found = []
    for name in recorder.passes:
        operation = name.partition(" ")[0]  # or a move's name
        if operation not in recorder.OPERATIONS:
            operation = "interpolate"
        entries = traffic.entries_of(recorder.plan_of[operation])
        if traffic.pass_bytes(name, entries)[0]:
            found.append(of_pass(name, entries, params))
    known = [of for of in found if of is not None]
    if not known or len(known) < len(found):
        return {}
    arrays, memory = zip(*known, strict=True)
    return {arrays: memory}


def _tensor(name: str, entry: Entry, gradients: Mapping[int, Tensor | None]) -> Any:
    if name == "grad":
        return gradients.get(entry.param.data_ptr())
    return entry.param if name == "y_high" else getattr(entry, name)
