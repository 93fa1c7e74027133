"""Options, provenance and the closing table of the benchmarks."""

from __future__ import annotations

import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table

import sfplus_kernels
from sfplus_kernels import _C

ROOFLINE = "in-place bandwidth"
FUSED = "AdamW fused"


class Record:
    """All timed rounds of one contestant."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.n_params = 0
        self.bytes_per_param = 0
        self.state_bytes = 0


RECORDS: dict[str, Record] = defaultdict(Record)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=["full", "quick"], default="full", help="of the tensors")


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Saved results say what they were measured on (pytest-benchmark adds the commit)."""
    machine_info["sfplus"] = {
        "size": config.getoption("--size"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "isa": _C.isa(),
        "torch": torch.__version__,
        "sfplus_kernels": sfplus_kernels.__version__,
        "gpu": None,  # what is measured here runs on the CPU
    }
    machine_info["node"] = ""  # nobody needs the host's name


def summary_rows() -> list[tuple[str, ...]]:
    """One row for each contestant; ratios are of medians."""
    roof = RECORDS[ROOFLINE]
    bandwidth = roof.n_params * roof.bytes_per_param / np.median(roof.seconds)
    fused = np.median(RECORDS[FUSED].seconds) if FUSED in RECORDS else float("nan")
    rows = []
    for name, record in RECORDS.items():
        low, median, high = np.percentile(record.seconds, [20, 50, 80])
        traffic = record.n_params * record.bytes_per_param
        rows.append(
            (
                name,
                f"{median * 1e3:.2f}",
                f"{low * 1e3:.2f} - {high * 1e3:.2f}",
                str(record.bytes_per_param),
                f"{traffic / median / 1e9:.1f}",
                f"{100 * traffic / bandwidth / median:.0f} %",
                "" if name == ROOFLINE else f"{median / fused:.2f}",
                "" if name == ROOFLINE else f"{record.state_bytes / record.n_params:.1f}",
            )
        )
    return rows


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if ROOFLINE not in RECORDS:
        return
    n_params = RECORDS[ROOFLINE].n_params
    table = Table(
        title=f"One step over {n_params / 1e6:.1f} M float32 parameters, {processor()}, "
        f"{torch.get_num_threads()} threads, {_C.isa()}, torch {torch.__version__}",
        caption=f"{len(RECORDS[ROOFLINE].seconds)} rounds of each, taken in turns; bytes are counted, "
        "not measured; the roofline is the in-place bandwidth",
    )
    columns = (
        "",
        "ms, median",
        "p20 - p80",
        "B/param",
        "GB/s",
        "of roofline",
        "x fused",
        "state B/param",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right")
    for row in summary_rows():
        table.add_row(*row)
    terminalreporter.write_line("")
    Console(width=128).print(table)
