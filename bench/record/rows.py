"""A result file: rows, the arithmetic on them, JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
RESULTS = "results.json"
BASELINE = "torch AdamW fused"
"""Times are also given as multiples of this contestant's in the same section."""
NOISE = 3.0
"""Percent of roofline that may be noise: a figure that is less sure is given with its interval."""


@dataclass
class Row:
    """One contestant in one section of a run. Times are seconds, sizes bytes, bandwidths bytes per second.

    ``status`` is "ok", "absent" (not installed, or not for this device), "left out" (by a rule that
    ``reason`` gives), "wrong" (its result is not that of the reference, so it was not timed) or "failed".
    """

    section: str  # ceiling, step, pass, options, busy, host, pairs, size or count
    workload: str
    name: str
    status: str = "ok"
    reason: str = ""
    ours: bool = False
    n_params: int = 0
    n_tensors: int = 0
    param_dtype: str = ""
    grad_dtype: str = ""
    traffic: int = 0  # bytes that the counted reads and writes of arrays move
    read: int = 0  # of these, the bytes that are read
    counted: str = ""  # how
    state_bytes: int | None = None
    temporary_bytes: int | None = None  # most that was allocated at one time within a step
    launches: int | None = None  # kernels of one step, on a GPU
    host: float | None = (
        None  # seconds until the step returns, where the device works on after that
    )
    rounds: int = 0
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    ceiling: str = ""  # what percent_of_roofline refers to: loops, measured in turns with this row
    ceiling_bandwidth: float | None = None  # at which its bytes would take as long as memory does
    percent_low: float | None = None  # the median of the turns' percent_of_roofline is between
    percent_high: float | None = None  # these two, in 95 of 100 runs
    ratio_to_baseline: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def set_times(self, seconds: list[float]) -> None:
        """NaN are turns that were left out."""
        seconds = [s for s in seconds if not math.isnan(s)]
        self.rounds = len(seconds)
        self.p20, self.median, self.p80 = (float(q) for q in np.percentile(seconds, [20, 50, 80]))

    @property
    def bandwidth(self) -> float | None:
        """Counted bytes per second of the median round."""
        return self.traffic / self.median if self.median else None

    @property
    def bytes_per_param(self) -> float:
        return self.traffic / self.n_params if self.n_params else 0.0

    @property
    def bytes_per_param_by_time(self) -> float | None:
        """Bytes that the ceiling moves in the time taken: what the step costs, whatever is counted."""
        if not (self.median and self.ceiling_bandwidth and self.n_params):
            return None
        return self.median * self.ceiling_bandwidth / self.n_params

    @property
    def percent_of_roofline(self) -> float | None:
        """The time that the counted bytes take at the ceiling, as percent of the time taken."""
        if not (self.median and self.ceiling_bandwidth and self.traffic):
            return None
        return 100 * self.traffic / self.ceiling_bandwidth / self.median


DERIVED = ("bytes_per_param", "bytes_per_param_by_time", "bandwidth", "percent_of_roofline")


def relate(rows: list[Row]) -> None:
    """Compare a section's rows with its baseline."""
    baseline = next((r.median for r in rows if r.name == BASELINE and r.status == "ok"), None)
    for row in rows:
        if row.median is not None and baseline is not None:
            row.ratio_to_baseline = row.median / baseline


def above_ceilings(rows: Iterable[Row]) -> list[str]:
    """Rows that took less time than memory does, by more than ``NOISE``: their ceilings are none."""
    return [
        f"{row.name} ({row.workload}): {row.percent_of_roofline:.0f} % "
        f"({row.percent_low or 0:.0f} - {row.percent_high or 0:.0f})"
        for row in rows
        if (row.percent_of_roofline or 0) > 100 + NOISE
    ]


def as_dict(row: Row) -> dict[str, Any]:
    """All columns, the derived ones too."""
    values = asdict(row)
    provenance = values.pop("provenance")
    return {**values, **{name: getattr(row, name) for name in DERIVED}, **provenance}


def write(folder: Path, rows: list[Row], run: dict[str, Any]) -> Path:
    """``results.json`` and ``results.csv`` in ``folder``; ``run`` is about the whole run.

    Whoever stops the run leaves the files of the last call, or of the one before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dicts = [as_dict(row) for row in rows]
    path = folder / RESULTS
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(
        json.dumps({"format": FORMAT, "run": run, "rows": dicts}, indent=1) + "\n"
    )
    unfinished.replace(path)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dicts[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(dicts)
    return path


@dataclass(frozen=True)
class Run:
    """A result file, read."""

    rows: list[Row]
    about: dict[str, Any]  # start, seconds, quick
    provenance: dict[str, Any]  # of the first row; all rows of a run have the same

    def section(self, section: str, workload: str | None = None, status: str = "ok") -> list[Row]:
        return [
            row
            for row in self.rows
            if (row.section, row.status) == (section, status) and workload in (None, row.workload)
        ]

    def workloads(self, section: str) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(row.workload for row in self.section(section)))


def read(path: Path) -> Run:
    """What an older file does not say has its default.

    Raises:
        ValueError: ``path`` is not a result file of this format.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.get("rows"):
        raise ValueError(
            f"{path} is not a result file of format {FORMAT} with rows; expected one that "
            "`python -m bench` of this version wrote: measure again"
        )
    own = {f.name for f in fields(Row)} - {"provenance"}
    rows = []
    for values in content["rows"]:
        provenance = {k: v for k, v in values.items() if k not in own and k not in DERIVED}
        rows.append(Row(**{k: values[k] for k in own if k in values}, provenance=provenance))
    return Run(rows, content["run"], rows[0].provenance)
