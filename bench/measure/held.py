"""Rows held against the ceilings that took turns with them, turn by turn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bench.contestants.contestant import Step
from bench.measure.ceilings import IN_ONE_PIECE, Ceiling, Pace, floor, name_of
from bench.record.rows import NOISE, Row
from bench.work.arrays import Arrays

OTHER = "{name}, from the other end"

Rounds = Mapping[str, list[float]]


def runs(found: Mapping[str, Ceiling]) -> dict[str, Step]:
    """As contestants that take turns: for each ceiling one, or two."""
    both = {name: ceiling.run for name, ceiling in found.items()}
    others = {OTHER.format(name=n): c.other for n, c in found.items() if c.other is not None}
    return {**both, **others}


def best(found: Mapping[str, Ceiling], rounds: Rounds) -> dict[str, list[float]]:
    """Seconds of each ceiling in each turn, the quicker one's where it has two."""
    times = {}
    for name in found:
        others = rounds.get(OTHER.format(name=name), rounds[name])
        times[name] = [min(pair) for pair in zip(rounds[name], others, strict=True)]
    return times


def beside(found: Mapping[str, Ceiling], held: Mapping[str, Iterable[Arrays]]) -> list[list[str]]:
    """What is timed close together: the ceilings of the same passes and the steps ``held`` against them.

    Memory that others use too is quick in one second and slow in the next.
    """
    groups: dict[str, list[str]] = {}
    for name, passes in held.items():
        groups.setdefault(name_of(tuple(passes)), []).append(name)
    close = []
    for name, steps in groups.items():
        own = [n for n in (name, IN_ONE_PIECE.format(name=name)) if n in found]
        others = [OTHER.format(name=n) for n in own if found[n].other is not None]
        if own:
            close.append([*own, *others, *steps])
    return close


def ceiling_rows(
    section: str,
    workload: str,
    found: Mapping[str, Ceiling],
    rounds: Rounds,
    n_params: int,
) -> list[Row]:
    """The rows of the ceilings themselves; ``n_params`` are the floats of their memory."""
    rows = []
    for name, seconds in best(found, rounds).items():
        ceiling = found[name]
        row = Row(section, workload, name, traffic=ceiling.traffic, read=ceiling.read)
        row.counted, row.ceiling = ceiling.what, name
        row.n_params, row.n_tensors = n_params, 1
        row.set_times(seconds)
        row.ceiling_bandwidth = row.bandwidth
        rows.append(row)
    return rows


def hold_against(
    row: Row,
    seconds: list[float],
    passes: Iterable[Arrays],
    found: Mapping[str, Ceiling],
    rounds: Rounds,
    has_loops: bool,
) -> None:
    """Say what memory would have taken for a row, as a part of what the row took in the same turn.

    Memory that others use too is quick in one turn and slow in the next; of these parts the median counts.

    Args:
        row: has its times.
        seconds: its rounds.
        passes: those of the step, () where they are not known.
        found: the ceilings; without ``has_loops`` the first one is the one.
        rounds: theirs.
    """
    if not (found and row.traffic and row.bandwidth):
        return
    passes = tuple(passes)
    times = best(found, rounds)
    shares = []
    for turn, own in enumerate(seconds):
        paces = {
            name: Pace(ceiling.traffic / times[name][turn], ceiling.read / times[name][turn])
            for name, ceiling in found.items()
            if not math.isnan(times[name][turn])
        }
        if math.isnan(own) or not paces:
            continue
        if has_loops:
            memory, row.ceiling = floor(passes, row.traffic, row.read, row.n_params, paces)
        else:
            row.ceiling = next(iter(found))
            memory = row.traffic / paces[row.ceiling].moved
        shares.append(memory / own)
    if not shares:
        return
    row.ceiling_bandwidth = row.bandwidth / float(np.median(shares))
    row.percent_low, row.percent_high = (100 * share for share in interval_of_median(shares))


def seems_above(
    row: Row,
    seconds: list[float],
    passes: Iterable[Arrays],
    found: Mapping[str, Ceiling],
    rounds: Rounds,
) -> bool:
    """Whether a row with these rounds would be quicker than its loops, by more than noise may be."""
    tried = replace(row)
    tried.set_times(seconds)
    hold_against(tried, seconds, passes, found, rounds, has_loops=True)
    return (tried.percent_of_roofline or 0) > 100 + NOISE


def interval_of_median(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The ends of what holds the median of where ``values`` come from; of few values, all of them.

    The k-th from below and the k-th from above have it between them, whatever its distribution, but for
    twice the chance that fewer than k of n fall below it.
    """
    ordered = sorted(values)
    n = len(ordered)
    missed, k = 0.0, 0
    while k < n // 2 and missed + 2 * math.comb(n, k) / 2**n <= 1 - confidence:
        missed += 2 * math.comb(n, k) / 2**n
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]
