"""What the memory gives: loops over the arrays that the passes have, timed as the steps are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.work.arrays import Arrays
from bench.work.memory import BLOCK, Memory

IN_PLACE, COPY, TRIAD, READ = "in-place", "copy", "triad", "read-only"
IN_ONE_PIECE = "{name}, in one piece"

SHAPES = (
    Arrays(read=(4,)),
    Arrays(read=(4, 4)),
    Arrays(changed=(4,)),
    Arrays(changed=(4,), read=(4,)),
    Arrays(changed=(4, 4), read=(4,)),
    Arrays(changed=(4, 4, 4), read=(4,)),
    Arrays(changed=(4, 4, 4, 4), read=(4,)),
)
"""Passes over float32: reduce without and with e, one array, interpolate, update of the three classes."""
LEAST = 2**24
"""Elements of a loop beside a workload that is smaller: in the caches there would be no ceiling."""
SMALL = 2**16
"""Elements of a tensor, on average: where they are fewer, a loop over memory in one piece may be quicker."""

Passes = tuple[Arrays, ...]
"""Of a step, one after the other."""


class Ceiling(NamedTuple):
    """A loop over memory: bytes of one run of it, and how.

    ``other`` is the same from the other end: in each turn the quicker one of the two counts.
    """

    run: Callable[[], Any]
    traffic: int
    what: str
    read: int = 0  # of its bytes
    other: Callable[[], Any] | None = None


class Pace(NamedTuple):
    """What a loop was measured to do: bytes a second, moved and of these read."""

    moved: float
    read: float


def main_ceiling(device_type: str) -> str:
    """What stands in where there are no loops with the arrays of a pass: on a GPU, and without the extension.

    On a CPU a copy also reads the lines that it writes, which is not in its count.
    """
    return COPY if device_type == "cuda" else IN_PLACE


def make_arena(device: torch.device, quick: bool, cache: int) -> Tensor:
    """Memory for the loops and, behind it, for flushing caches: far larger than these, but in a rehearsal."""
    if quick:
        return torch.ones(3 * 2**23, device=device)
    if device.type == "cuda":
        return torch.ones(3 * 2**28, device=device)
    flush = min(2 * cache, 3 * 2**30) // 4  # a last-level cache shared with others can be huge
    return torch.ones((5 * 2**25 + flush) // 12 * 12, device=device)


def ceilings(arena: Tensor) -> dict[str, Ceiling]:
    """The loops of torch over ``arena``, which every machine has."""
    a, b, c = arena.view(3, -1)
    nbytes = arena.numel() * arena.itemsize
    third = nbytes // 3
    return {
        IN_PLACE: Ceiling(arena.neg_, 2 * nbytes, "x <- -x", nbytes),
        COPY: Ceiling(lambda: a.copy_(b), 2 * third, "a <- b", third),
        TRIAD: Ceiling(
            lambda: torch.add(b, c, alpha=0.5, out=a), nbytes, "a <- b + s c", 2 * third
        ),
        READ: Ceiling(lambda: torch.dot(a, b), 2 * third, "sum a b", 2 * third),
    }


def has_loops(device: torch.device) -> bool:
    """Whether there are loops over any arrays: the extension's, on a CPU."""
    return device.type == "cpu" and _extension() is not None


def name_of(passes: Passes) -> str:
    """Of the loops of these passes, back to back."""
    return " + ".join(arrays.name for arrays in passes)


def loops(arena: Tensor, steps: Iterable[Passes], numel: int) -> dict[str, Ceiling]:
    """One for each step, over ``numel`` elements or as many as ``arena`` has room for.

    Their bits are flipped: this is memory of which nobody reads the values.
    """
    found = {}
    for passes in steps:
        size = arena.numel() * arena.itemsize
        room = min(size // sum((*arrays.changed, *arrays.read)) for arrays in passes)
        n = min(max(numel, LEAST), room) // BLOCK * BLOCK
        parts = []
        for arrays in passes:
            places, at = [], arena.data_ptr()
            for width in (*arrays.changed, *arrays.read):
                places.append((at, width))
                at += n * width
            parts.append([(places, n)])
        found[name_of(passes)] = _ceiling(passes, parts, n, "apart", flips=True)
    return found


def loops_in_place(memory: Mapping[Passes, Sequence[Memory]]) -> dict[str, Ceiling]:
    """One for each step, over the tensors of its passes themselves, which keep their values."""
    found = {}
    for passes, own in memory.items():
        if n := own[0].numel:
            parts = [
                [
                    ([(t.data_ptr(), t.itemsize) for t in side], side[0].numel())
                    for side in one.tensors
                ]
                for one in own
            ]
            found[name_of(passes)] = _ceiling(passes, parts, n, "in place", flips=False)
    return found


def loops_beside(
    arena: Tensor,
    steps: Iterable[Passes],
    numel: int,
    memory: Mapping[Passes, Sequence[Memory]],
) -> dict[str, Ceiling]:
    """One for each step: where its passes' arrays lie, if that is known, else in ``arena``.

    Where these are many small tensors, one in ``arena`` too. Beside steps of which no passes are known, one
    that reads and one that writes.
    """
    found = loops_in_place(memory)
    wanted = dict.fromkeys(filter(None, steps)) or dict.fromkeys(((SHAPES[1],), (SHAPES[-1],)))
    small = [
        passes
        for passes, (first, *_) in memory.items()
        if name_of(passes) in found and first.numel < SMALL * len(first.tensors)
    ]
    in_one_piece = loops(arena, small, numel)
    found |= {IN_ONE_PIECE.format(name=name): one for name, one in in_one_piece.items()}
    return found | loops(arena, [p for p in wanted if name_of(p) not in found], numel)


def floor(
    passes: Passes,
    traffic: int,
    read: int,
    n_params: int,
    paces: Mapping[str, Pace],
) -> tuple[float, str]:
    """Seconds that memory takes for a step, and what says so.

    A step whose passes are known takes what their loops take back to back, the quicker ones of those in
    place and in one piece. For others it is what binds: all bytes at the best pace at which any loop moved
    bytes, or those that are read at the best pace at which any read them.
    """
    name = name_of(passes)
    known = [paces[n].moved for n in (name, IN_ONE_PIECE.format(name=name)) if n in paces]
    if passes and known:
        return sum(a.bytes_per_element for a in passes) * n_params / max(known), name
    by_moving = traffic / max(pace.moved for pace in paces.values())
    by_reading = read / max(pace.read for pace in paces.values())
    return max((by_moving, "all bytes moved"), (by_reading, "bytes read"))


def _ceiling(passes: Passes, parts: list[list], n: int, where: str, *, flips: bool) -> Ceiling:
    """The passes' loops in one run: what one leaves in the caches, the next one finds there.

    The second one goes the other way, as update does behind reduce.
    """
    _C = _extension()
    made = [
        _C.MemoryLoop(part, len(arrays.changed)) for arrays, part in zip(passes, parts, strict=True)
    ]

    def from_end(backwards: bool) -> Callable[[], None]:
        turned = [(loop, backwards ^ bool(k % 2)) for k, loop in enumerate(made)]

        def run() -> None:
            for loop, to_beginning in turned:
                loop.run(to_beginning, flips, torch.get_num_threads())

        return run

    return Ceiling(
        from_end(False),
        sum(arrays.bytes_per_element for arrays in passes) * n,
        f"{n:,} elements, {where}",
        sum(arrays.bytes_read for arrays in passes) * n,
        from_end(True),
    )


def _extension() -> Any:
    try:
        import sfplus_kernels._C as _C
    except ImportError:
        return None
    return _C
