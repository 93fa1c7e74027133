"""Each pass of a step alone: reduce, finalize, update, interpolate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

from bench.contestants.contestant import Contestant, Step
from bench.work import memory, traffic
from bench.work.arrays import Arrays
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.layout import Move


class Pass(NamedTuple):
    """A pass that can be run over and over: each run does the work of the first."""

    name: str
    run: Step
    traffic: int
    read: int
    arrays: Arrays
    state_bytes: int
    memory: memory.Memory | None


def passes(contestant: Contestant, params: list) -> Iterator[Pass]:
    """The passes of one of our optimizers over ``params``, which have gradients."""
    optimizer, step = contestant.make(params)
    step()
    recorder = traffic.record_step(optimizer, step)
    backend, run = recorder.backend, traffic.engine_of(optimizer).run
    entries = traffic.entries_of(recorder.plan_of["update"])
    runs: dict[str, Step] = {name: recorder.call_of[name] for name in recorder.passes}
    touched = dict.fromkeys(runs, entries)
    if entries[0].displacement is not None:  # else y is all that there is, and nothing moves
        moves = cycle((Move.TO_X, Move.TO_Y))
        to_move = backend.plan([_at_rest(e) for e in entries], params[0].device)
        runs["interpolate"] = lambda: backend.interpolate(to_move, run, next(moves))
        touched["interpolate"] = traffic.entries_of(to_move)
    for name, one in runs.items():
        pass_name, of = "to_x" if name == "interpolate" else name, touched[name]
        moved, read = traffic.pass_bytes(pass_name, of)
        arrays = traffic.pass_arrays(pass_name, traffic.largest(of))
        own = memory.of_pass(pass_name, of, params)
        state = traffic.state_bytes(optimizer)
        yield Pass(name, one, moved, read, arrays, state, own[1] if own else None)


def _at_rest(entry: Entry) -> Entry:
    """As where y is moved to x: without a gradient, and with y's upper half beside it where y has two."""
    high = None if entry.y_low is None else entry.param.detach().clone()
    return entry._replace(grad_dtype=None, y_high=high)
