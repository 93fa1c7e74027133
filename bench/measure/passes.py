"""Each pass of a step alone: reduce, finalize, update, interpolate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

from bench.contestants.contestant import Contestant, Step
from bench.work import traffic
from sfplus_kernels.contract.layout import Move


class Pass(NamedTuple):
    """A pass that can be run over and over: each run does the work of the first."""

    name: str
    run: Step
    traffic: int
    state_bytes: int


def passes(contestant: Contestant, params: list) -> Iterator[Pass]:
    """The passes of one of our optimizers over ``params``, which have gradients."""
    optimizer, step = contestant.make(params)
    step()
    recorder = traffic.record_step(optimizer, step)
    backend, run = recorder.backend, traffic.engine_of(optimizer).run
    entries = traffic.entries_of(recorder.plan_of["update"])
    moves = cycle((Move.TO_X, Move.TO_Y))
    to_move = backend.plan([e._replace(grad_dtype=None) for e in entries], params[0].device)
    runs: dict[str, Step] = {name: recorder.call_of[name] for name in recorder.passes}
    runs["interpolate"] = lambda: backend.interpolate(to_move, run, next(moves))
    for name, one in runs.items():
        nbytes = traffic.pass_bytes("to_x" if name == "interpolate" else name, entries)
        yield Pass(name, one, nbytes, traffic.state_bytes(optimizer))
