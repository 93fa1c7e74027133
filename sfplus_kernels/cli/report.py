"""``python -m sfplus_kernels report``: versions, devices and backends of this installation."""

import argparse
import importlib.metadata
import platform

import torch

from sfplus_kernels._version import __version__
from sfplus_kernels.backends.registry import report


def report_lines() -> dict[str, str]:
    """What there is, by its name."""
    lines = {
        "sfplus_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _installed("triton"),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    for index in range(torch.cuda.device_count()):
        lines[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if not torch.cuda.is_available():
        lines["cuda"] = "no device"
    return lines | {f"backend {name}": status for name, status in report().items()}


def main(arguments: list[str]) -> None:
    """Print the report."""
    argparse.ArgumentParser(
        prog="python -m sfplus_kernels report",
        description="Show versions, devices, and why a backend is unavailable.",
    ).parse_args(arguments)
    lines = report_lines()
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
