"""Two contestants step after step, as a training loop has it: some steps of the one, then of the other.

Where each of many contestants has one step in a turn, a step finds the caches full of what the others did.
For steps of next to no work that is half of the figure.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping

import numpy as np

from bench.contestants.contestant import Step
from bench.measure.timing import Timer

STEPS = 10
"""Of each in its turn; the first one, which finds the other's things in the caches, is not counted."""

Pair = list[tuple[float, float]]
"""Seconds of a step, (baseline, other), by turns: the medians of a turn's steps."""


def take_turns_in_pairs(
    timer: Timer,
    baseline: Step,
    others: Mapping[str, Step],
    budget: float,
    tick: Callable[[], None],
    *,
    least: int = 7,
    most: int = 51,
) -> dict[str, Pair]:
    """Each of ``others`` beside ``baseline``; who begins changes from turn to turn.

    The number of turns comes from ``budget`` as that of ``timing.take_turns`` does. Between two turns of a
    pair all other pairs have one, in an order drawn anew.
    """
    order = random.Random(0)
    names = list(others)
    pairs: dict[str, Pair] = {name: [] for name in names}
    for step in [baseline, *others.values()]:
        step()  # allocates what is allocated once
    timer.wait()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        turns, turn = least, 0
        while turn < turns:
            order.shuffle(names)
            for name in names:
                if turn % 2:
                    other, base = _several(timer, others[name]), _several(timer, baseline)
                else:
                    base, other = _several(timer, baseline), _several(timer, others[name])
                pairs[name].append((base, other))
                tick()
            if turn == 0:
                first = time.perf_counter() - start
                turns = int(min(max(budget / first, least), most))
            turn += 1
            if turn >= 3 and time.perf_counter() - start > 3 * budget:
                break
    finally:
        gc.enable()
    return pairs


def ratio(pair: Pair) -> float:
    """How much longer the other takes than the baseline: the median over the turns."""
    return float(np.median([other / base for base, other in pair]))


def _several(timer: Timer, step: Step) -> float:
    return float(np.median([timer.host_time(step) for _ in range(STEPS)][1:]))
