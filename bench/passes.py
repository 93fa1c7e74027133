"""Each pass of a step alone: reduce, finalize, update, interpolate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

from bench import traffic
from bench.contestants import Contestant, Step


class Pass(NamedTuple):
    """A pass that can be run over and over: each run does the work of the first."""

    name: str
    run: Step
    traffic: int
    state_bytes: int


def passes(contestant: Contestant, params: list) -> Iterator[Pass]:
    """The passes of one of our optimizers over ``params``, which have gradients."""
    optimizer: Any
    optimizer, step = contestant.make(params)
    recorder = traffic.record_step(optimizer, step)
    backend, plan, run = recorder.backend, recorder.plans[-1], traffic.run_of(optimizer)
    entries = recorder.entries[id(plan)]
    reduces = "reduce" in recorder.passes
    directions = cycle((True, False))
    # made here: eval() and train() make one each time
    way_back = backend.plan([e._replace(grad_dtype=None) for e in entries], params[0].device)
    runs: dict[str, Callable[[], Any]] = {
        "reduce": lambda: backend.reduce(plan),
        "finalize": lambda: backend.finalize(plan, run, reduces),
        "update": lambda: backend.update(plan, run),
        "interpolate": lambda: backend.interpolate(way_back, run, next(directions)),
    }
    for name, one in runs.items():
        if name != "reduce" or reduces:
            nbytes = traffic.pass_bytes(name, entries)
            yield Pass(name, one, nbytes, traffic.state_bytes(optimizer))
