"""Rows held against the ceilings that took turns with them."""

from __future__ import annotations

from collections.abc import Iterable

from bench.contestants.contestant import Step
from bench.measure.ceilings import Ceiling, Pace, floor
from bench.record.rows import Row
from bench.work.arrays import Arrays


def runs(found: dict[str, Ceiling]) -> dict[str, Step]:
    """As contestants that take turns."""
    return {name: ceiling.run for name, ceiling in found.items()}


def ceiling_rows(
    section: str,
    workload: str,
    found: dict[str, Ceiling],
    rounds: dict[str, list[float]],
    n_params: int,
) -> list[Row]:
    """The rows of the ceilings themselves; ``n_params`` are the floats of their memory.

    A ceiling is what a loop reaches in a fifth of its rounds: it says what memory can do, and its median what
    it does most of the time, as a part of that.
    """
    rows = []
    for name, ceiling in found.items():
        row = Row(section, workload, name, traffic=ceiling.traffic, read=ceiling.read)
        row.counted, row.ceiling = ceiling.what, name
        row.n_params, row.n_tensors = n_params, 1
        row.set_times(rounds[name])
        assert row.p20 is not None
        row.ceiling_bandwidth = row.traffic / row.p20
        rows.append(row)
    return rows


def hold_against(row: Row, passes: Iterable[Arrays], measured: list[Row], has_loops: bool) -> None:
    """Say what memory would take for a row that has its times.

    Args:
        passes: those of the step, () where they are not known.
        measured: the rows of the ceilings; without ``has_loops`` the first one is the one.
    """
    if not (measured and row.traffic):
        return
    if not has_loops:
        row.ceiling, row.ceiling_bandwidth = measured[0].name, measured[0].ceiling_bandwidth
        return
    paces = {m.name: Pace(m.traffic / m.p20, m.read / m.p20) for m in measured if m.p20}
    seconds, row.ceiling = floor(passes, row.traffic, row.read, row.n_params, paces)
    row.ceiling_bandwidth = row.traffic / seconds
