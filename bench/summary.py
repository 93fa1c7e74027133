"""The closing table of the benchmarks, from timed rounds: on screen after a run, or from a saved run.

python bench/summary.py bench/results/FILE.json      prints the table as Markdown
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOFLINE = "in-place bandwidth"
FUSED = "AdamW fused"
COLUMNS = (
    "",
    "ms, median",
    "p20 - p80",
    "B/param",
    "GB/s",
    "of roofline",
    "x fused AdamW",
    "state B/param",
)


@dataclass
class Record:
    """All timed rounds of one contestant."""

    n_params: int = 0
    bytes_per_param: int = 0  # traffic of one round, counted
    state_bytes: int = 0
    seconds: list[float] = field(default_factory=list)


def table_rows(records: dict[str, Record]) -> list[tuple[str, ...]]:
    """One row for each contestant in the order of ``COLUMNS``; ratios are of medians."""
    roof = records[ROOFLINE]
    bandwidth = roof.n_params * roof.bytes_per_param / np.median(roof.seconds)
    rows = []
    for name, record in records.items():
        low, median, high = np.percentile(record.seconds, [20, 50, 80])
        traffic = record.n_params * record.bytes_per_param
        row = [
            name,
            f"{median * 1e3:.1f}",
            f"{low * 1e3:.1f} - {high * 1e3:.1f}",
            str(record.bytes_per_param),
            f"{traffic / median / 1e9:.1f}",
            f"{100 * traffic / bandwidth / median:.0f} %",
        ]
        if name == ROOFLINE:
            row += ["", ""]
        else:
            fused = records.get(FUSED)
            ratio = f"{median / np.median(fused.seconds):.2f}" if fused else ""
            row += [ratio, f"{record.state_bytes / record.n_params:.1f}"]
        rows.append(tuple(row))
    return rows


def read(path: Path) -> tuple[dict[str, Record], dict[str, Any]]:
    """The records of a run saved with ``--benchmark-json``, and what it was measured on."""
    saved = json.loads(path.read_text())
    records: dict[str, Record] = {}
    for benchmark in saved["benchmarks"]:
        info = benchmark["extra_info"]
        record = records.setdefault(benchmark["params"]["name"], Record())
        record.n_params, record.bytes_per_param = info["n_params"], info["bytes_per_param"]
        record.state_bytes = info["state_bytes"]
        record.seconds += benchmark["stats"]["data"]
    return records, {**saved["machine_info"]["sfplus"], "commit": saved["commit_info"]["id"]}


def markdown(path: Path) -> str:
    """The table of a saved run."""
    records, _ = read(path)
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *table_rows(records)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
    print(read(Path(sys.argv[1]))[1])
