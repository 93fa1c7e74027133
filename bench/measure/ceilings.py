"""The bandwidth that the memory gives: what every step is measured against, timed as the steps are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

IN_PLACE, COPY, TRIAD, READ = "in-place", "copy", "triad", "read-only"
SIDE_BY_SIDE = "in-place, 4 arrays"
"""As the passes go: for comparison, where our own loop is there. The roofline is that of one array."""


class Ceiling(NamedTuple):
    """A loop over memory: bytes of one run of it, and how."""

    run: Callable[[], Any]
    traffic: int
    what: str


def main_ceiling(device_type: str) -> str:
    """What a step is compared with.

    On a CPU the in-place loop: a copy also reads the lines that it writes, which is not in its count.
    """
    return COPY if device_type == "cuda" else IN_PLACE


def make_arena(device: torch.device, quick: bool, cache: int) -> Tensor:
    """Memory for the loops and for flushing caches: far larger than these, but in a rehearsal."""
    if quick:
        return torch.ones(3 * 2**23, device=device)
    numel = 3 * 2 ** (28 if device.type == "cuda" else 26)
    least = min(2 * cache, 3 * 2**30) // 4  # a last-level cache shared with others can be huge
    return torch.ones(max(numel, least // 12 * 12), device=device)


def ceilings(arena: Tensor) -> dict[str, Ceiling]:
    """All loops over ``arena``."""
    a, b, c = arena.view(3, -1)
    nbytes = arena.numel() * arena.itemsize
    ours = _our_loop(arena)
    four = {} if ours is None else {SIDE_BY_SIDE: Ceiling(lambda: ours(4), 2 * nbytes, "x <- -x")}
    return {
        IN_PLACE: Ceiling(arena.neg_ if ours is None else lambda: ours(1), 2 * nbytes, "x <- -x"),
        **four,
        COPY: Ceiling(lambda: a.copy_(b), 2 * nbytes // 3, "a <- b"),
        TRIAD: Ceiling(lambda: torch.add(b, c, alpha=0.5, out=a), nbytes, "a <- b + s c"),
        READ: Ceiling(lambda: torch.dot(a, b), 2 * nbytes // 3, "sum a b"),
    }


def _our_loop(arena: Tensor) -> Callable[[int], None] | None:
    """Threaded, over so many arrays side by side; None where the extension is not there."""
    if arena.device.type != "cpu":
        return None
    try:
        import sfplus_kernels._C as _C
    except ImportError:
        return None
    return lambda n: _C.negate(arena.data_ptr(), arena.numel(), torch.get_num_threads(), n)
