"""Rows held against the ceilings that took turns with them, turn by turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from bench.contestants.contestant import Step
from bench.measure.ceilings import Ceiling, Pace, floor
from bench.record.rows import Row
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
            name: Pace(
                found[name].traffic / times[name][turn], found[name].read / times[name][turn]
            )
            for name in found
        }
        if has_loops:
            memory, row.ceiling = floor(passes, row.traffic, row.read, row.n_params, paces)
        else:
            row.ceiling = next(iter(found))
            memory = row.traffic / paces[row.ceiling].moved
        shares.append(memory / own)
    row.ceiling_bandwidth = row.bandwidth / float(np.median(shares))
