"""What the memory gives: loops over the arrays that the passes have, timed as the steps are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.work.arrays import Arrays
from bench.work.memory import BLOCK, Memory

IN_PLACE, COPY, TRIAD, READ = "in-place", "copy", "triad", "read-only"

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


def loops(arena: Tensor, shapes: Iterable[Arrays], numel: int) -> dict[str, Ceiling]:
    """One for each kind of arrays, over ``numel`` elements or as many as ``arena`` has room for.

    Their bits are flipped: this is memory of which nobody reads the values.
    """
    found = {}
    for arrays in shapes:
        room = arena.numel() * arena.itemsize // sum(arrays.changed + arrays.read)
        n = min(max(numel, LEAST), room) // BLOCK * BLOCK
        places, at = [], arena.data_ptr()
        for width in (*arrays.changed, *arrays.read):
            places.append((at, width))
            at += n * width
        found[arrays.name] = _ceiling(arrays, [(places, n)], n, "apart", flips=True)
    return found


def loops_in_place(memory: Mapping[Arrays, Memory]) -> dict[str, Ceiling]:
    """One for each kind of arrays, over the tensors of a pass themselves, which keep their values."""
    found = {}
    for arrays, own in memory.items():
        if n := own.numel:
            parts = [
                ([(t.data_ptr(), t.itemsize) for t in side], side[0].numel())
                for side in own.tensors
            ]
            found[arrays.name] = _ceiling(arrays, parts, n, "in place", flips=False)
    return found


def loops_beside(
    arena: Tensor, passes: Iterable[Arrays], numel: int, memory: Mapping[Arrays, Memory]
) -> dict[str, Ceiling]:
    """One for each kind of arrays in ``passes``: where these lie, if that is known, else in ``arena``.

    Beside steps of which no passes are known, one that reads and one that writes.
    """
    found = loops_in_place(memory)
    wanted = dict.fromkeys(passes) or dict.fromkeys((SHAPES[1], SHAPES[-1]))
    return found | loops(arena, [a for a in wanted if a.name not in found], numel)


def floor(
    passes: Iterable[Arrays],
    traffic: int,
    read: int,
    n_params: int,
    paces: Mapping[str, Pace],
) -> tuple[float, str]:
    """Seconds that memory takes for a step, and what says so.

    A pass takes what the loop with its arrays does; a step of several, the sum of these. Where the passes are
    not known, or not all of their loops were timed, what binds: all bytes at the best pace at which any loop
    moved bytes, or those that are read at the best pace at which any read them.
    """
    passes = tuple(passes)
    if passes and all(arrays.name in paces for arrays in passes):
        seconds = sum(a.bytes_per_element * n_params / paces[a.name].moved for a in passes)
        return seconds, " + ".join(dict.fromkeys(arrays.name for arrays in passes))
    by_moving = traffic / max(pace.moved for pace in paces.values())
    by_reading = read / max(pace.read for pace in paces.values())
    return max((by_moving, "all bytes moved"), (by_reading, "bytes read"))


def _ceiling(arrays: Arrays, parts: list, n: int, where: str, *, flips: bool) -> Ceiling:
    _C = _extension()

    def from_end(backwards: bool) -> Callable[[], int]:
        changed = len(arrays.changed)
        return lambda: _C.stream(parts, changed, backwards, flips, torch.get_num_threads())

    return Ceiling(
        from_end(False),
        arrays.bytes_per_element * n,
        f"{n:,} elements, {where}",
        arrays.bytes_read * n,
        from_end(True),
    )


def _extension() -> Any:
    try:
        import sfplus_kernels._C as _C
    except ImportError:
        return None
    return _C
