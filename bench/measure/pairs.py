"""Two contestants step after step, as a training loop has it: some steps of the one, then of the other.

Where each of many contestants has one step in a turn, a step finds the caches full of what the others did.
For steps of next to no work that is half of the figure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np

from bench.contestants.contestant import Step
from bench.measure.timing import Timer, repeat

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

    How many turns there are: see ``timing.repeat``. Between two turns of a pair all other pairs have one, in
    an order drawn anew.
    """
    order = random.Random(0)
    names = list(others)
    pairs: dict[str, Pair] = {name: [] for name in names}

    def turn(number: int, turns: int) -> float:
        order.shuffle(names)
        for name in names:
            if number % 2:
                other, base = _several(timer, others[name]), _several(timer, baseline)
            else:
                base, other = _several(timer, baseline), _several(timer, others[name])
            pairs[name].append((base, other))
            tick()
        return 0.0

    steps = [baseline, *others.values()]
    repeat(timer, steps, turn, budget, least=least, most=most)
    return pairs


def ratio(pair: Pair) -> float:
    """How much longer the other takes than the baseline: the median over the turns."""
    return float(np.median([other / base for base, other in pair]))


def _several(timer: Timer, step: Step) -> float:
    return float(np.median([timer.host_time(step) for _ in range(STEPS)][1:]))
