"""Whether the machine was quiet: what others took of it, the same work before and after, memory between."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.record.rows import Row

OTHERS = 0.05
"""Cores that others may have kept busy, and that the host may have taken away from a virtual machine."""
DRIFT = 0.1
"""The calibration: its rounds (p80 over p20), its cores, before and after may differ by so much."""
MEMORY = 0.25
"""What memory gave to the same loop, beside one workload and another: their pages differ too."""
SPREAD = 0.1
"""Of the rounds of our steps in the first workload: p20 to p80, as a part of the median."""


@dataclass(frozen=True)
class Usage:
    """Seconds since the machine began: of all its cores, of this process and its children, of the clock."""

    busy: float
    stolen: float
    own: float
    clock: float


def usage() -> Usage:
    """Of now; without Linux's /proc others are not seen."""
    own = sum(os.times()[:4])
    stat = Path("/proc/stat")
    if not stat.exists():
        return Usage(own, 0.0, own, time.monotonic())
    ticks = [int(x) for x in stat.read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, soft, stolen = (
        t / os.sysconf("SC_CLK_TCK") for t in ticks
    )
    return Usage(user + nice + system + irq + soft, stolen, own, time.monotonic())


def calibrate(rounds: int = 15) -> dict[int, list[float]]:
    """Seconds of the same arithmetic in a core's cache, for each core, on which it is pinned."""
    block = bytes(2**18)
    can_pin = hasattr(os, "sched_setaffinity")
    before = os.sched_getaffinity(0) if can_pin else {0}
    found: dict[int, list[float]] = {}
    try:
        for core in sorted(before)[:16]:
            if can_pin:
                os.sched_setaffinity(0, {core})
            seconds = []
            for _ in range(rounds):
                start = time.perf_counter()
                for _ in range(16):
                    hashlib.sha256(block).digest()
                seconds.append(time.perf_counter() - start)
            found[core] = seconds
    finally:
        if can_pin:
            os.sched_setaffinity(0, before)
    return found


class Weather:
    """Watches the machine from its making on."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0]
        self.calibration = calibrate()
        self.start = usage()

    def found(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Figures of the run up to now, and under ``not_quiet`` what is wrong with them.

        Calling it takes a calibration, and so some tenths of a second.
        """
        now = usage()
        elapsed = max(now.clock - self.start.clock, 1e-9)
        others = (now.busy - self.start.busy) - (now.own - self.start.own)
        figures: dict[str, Any] = {
            "load_before": round(self.load, 2),
            "cores_of_others": round(max(others / elapsed, 0.0), 3),
            "cores_stolen": round((now.stolen - self.start.stolen) / elapsed, 3),
            **_calibration(self.calibration, calibrate()),
            "spread_of_rounds": spread(rows),
            "drift_of_memory": drift_of_memory(rows),
        }
        return {**figures, "not_quiet": reasons(figures)}


def spread(rows: Iterable[Row]) -> float | None:
    """The middle one of our steps in the first workload: from p20 to p80, as a part of the median."""
    steps = [row for row in rows if row.section == "step" and row.ours and row.median]
    spreads = [
        ((row.p80 or 0) - (row.p20 or 0)) / row.median
        for row in steps
        if row.median and row.workload == steps[0].workload
    ]
    return round(float(np.median(spreads)), 3) if spreads else None


def drift_of_memory(rows: Iterable[Row]) -> float | None:
    """Of the loop that was measured beside the most workloads: its best pace over its worst, less one."""
    paces: dict[str, list[float]] = {}
    for row in rows:
        if row.section == "step" and row.name == row.ceiling and row.bandwidth:
            paces.setdefault(row.name, []).append(row.bandwidth)
    most = max(paces.values(), key=len, default=[])
    return round(max(most) / min(most) - 1, 3) if len(most) > 1 else None


def reasons(figures: dict[str, Any]) -> list[str]:
    """Why the machine was not quiet; nothing where it was."""
    found = []
    if figures["cores_of_others"] > OTHERS:
        found.append(f"others kept {figures['cores_of_others']:.2f} cores busy")
    if figures["cores_stolen"] > OTHERS:
        found.append(f"the host took {figures['cores_stolen']:.2f} cores away")
    for key, what in (
        ("calibration_spread", "rounds of the same arithmetic differ by"),
        ("calibration_drift", "the same arithmetic, before and after, differs by"),
    ):
        if figures[key] > DRIFT:
            found.append(f"{what} {100 * figures[key]:.0f} %")
    if (figures["spread_of_rounds"] or 0) > SPREAD:
        found.append(
            f"p20 and p80 of a step are {100 * figures['spread_of_rounds']:.0f} % of its median apart"
        )
    if (figures["drift_of_memory"] or 0) > MEMORY:
        found.append(
            f"what memory gives to the same loop differs by {100 * figures['drift_of_memory']:.0f} %"
        )
    return found


def _calibration(before: dict[int, list[float]], after: dict[int, list[float]]) -> dict[str, float]:
    """The worst core's, of its spread and of its drift."""
    low, high = (
        {core: np.percentile(before[core] + after[core], q) for core in before} for q in (20, 80)
    )
    drifts = [abs(np.median(after[c]) / np.median(before[c]) - 1) for c in before]
    return {
        "calibration_spread": round(float(max(high[c] / low[c] - 1 for c in before)), 3),
        "calibration_drift": round(float(max(drifts)), 3),
    }
