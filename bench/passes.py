"""Each pass of a step alone: reduce, finalize, update, interpolate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

from bench import traffic
from bench.contestant import Contestant, Step
from sfplus_kernels.backends.layout import Move


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
    backend, plan = recorder.backend, recorder.plan_of["update"]
    run = traffic.engine_of(optimizer).run
    entries = traffic.entries_of(plan)
    partials = backend.reduce(plan, with_e=True) if "reduce" in recorder.passes else None
    moves = cycle((Move.TO_X, Move.TO_Y))
    to_move = backend.plan([e._replace(grad_dtype=None) for e in entries], params[0].device)
    runs: dict[str, tuple[Step, str]] = {
        "reduce": (lambda: backend.reduce(plan, with_e=True), "reduce"),
        "finalize": (lambda: backend.finalize(plan, run, partials), "finalize"),
        "update": (lambda: backend.update(plan, run), "update"),
        "interpolate": (lambda: backend.interpolate(to_move, run, next(moves)), "to_x"),
    }
    for name, (one, pass_name) in runs.items():
        if name != "reduce" or partials is not None:
            nbytes = traffic.pass_bytes(pass_name, entries)
            yield Pass(name, one, nbytes, traffic.state_bytes(optimizer))
