"""What a figure was measured on, with what, and when: part of every row."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import sfplus_kernels

ROOT = Path(__file__).parents[2]
PACKAGES = ("numpy", "triton", "schedulefree")
DISTRIBUTIONS = {"optimi": "torch-optimi", "pytorch_optimizer": "pytorch-optimizer"}
"""Of modules whose distribution has another name."""
"""Versions that are recorded beside torch's and our own; the peers' are added by their names."""


def collect(device: torch.device, peers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Device, driver, clocks, threads, versions, commit and date; None where there is no such thing."""
    hardware = _gpu(device) if device.type == "cuda" else _cpu()
    versions = {name: _version(name) for name in dict.fromkeys((*PACKAGES, *peers))}
    return {
        "device_type": device.type,
        **hardware,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "sfplus_kernels": sfplus_kernels.__version__,
        "packages": ", ".join(f"{name} {v}" for name, v in versions.items() if v),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """The commit that is checked out, with "+" behind it if tracked files differ from it.

    ``SFPLUS_COMMIT`` says it where the files came without git's.
    """
    if said := os.environ.get("SFPLUS_COMMIT"):
        return said
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if changed else "")


def last_level_cache() -> int:
    """Bytes of the largest cache that Linux reports for the first core; 64 MiB where it reports none."""
    sizes = [
        int(path.read_text().strip().removesuffix("K")) * 1024
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if path.read_text().strip().endswith("K")
    ]
    return max(sizes, default=64 * 2**20)


def _cpu() -> dict[str, Any]:
    values: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            values.setdefault(key.strip(), value.strip())
    try:
        import sfplus_kernels._C as _C

        isa = _C.isa()
    except ImportError:
        isa = None
    return {
        "device": values.get("model name") or platform.processor() or platform.machine(),
        "driver": f"{platform.system()} {platform.release()}",
        "clocks": f"{float(values['cpu MHz']):.0f} MHz" if "cpu MHz" in values else None,
        "threads": torch.get_num_threads(),
        "isa": isa,
        "cache": last_level_cache(),
    }


def _gpu(device: torch.device) -> dict[str, Any]:  # never run: no GPU was at hand
    properties = torch.cuda.get_device_properties(device)
    with torch.cuda.device(device):
        torch.cuda._sleep(10**9)  # half a second of work: the clocks of an idle GPU say nothing
    answer = _output(
        "nvidia-smi",
        f"--id=GPU-{properties.uuid}",  # its numbers are not torch's under CUDA_VISIBLE_DEVICES
        "--query-gpu=driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem",
        "--format=csv,noheader",
    )
    driver, _, clocks = (answer or "").partition(", ")
    return {
        "device": properties.name,
        "driver": driver or None,
        "clocks": f"SM, memory, their limits: {clocks}" if clocks else None,
        "threads": torch.get_num_threads(),
        "isa": f"sm_{properties.major}{properties.minor}",
        "cache": properties.L2_cache_size,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(DISTRIBUTIONS.get(package, package))
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
