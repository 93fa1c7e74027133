"""Options, provenance and the closing table of the benchmarks."""

from __future__ import annotations

import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from summary import COLUMNS, ROOFLINE, Record, table_rows

import sfplus_kernels
from sfplus_kernels import _C

RECORDS: dict[str, Record] = defaultdict(Record)
"""Filled by the benchmarks, in the order in which they ran first."""


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
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for row in table_rows(RECORDS):
        table.add_row(*row)
    terminalreporter.write_line("")
    Console(width=128).print(table)
