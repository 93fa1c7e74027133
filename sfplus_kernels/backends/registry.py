"""Which backends there are, which one serves a device, and why one is unavailable."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sfplus_kernels.backends.machine_code import device_problem, driver_problem
from sfplus_kernels.contract.backend import Backend

ENVIRONMENT_VARIABLE = "SFPLUS_BACKEND"

OLDEST_TRITON = (3, 4)
"""Earlier ones do not compile the kernels: they know no attributes of compile-time constants."""


@dataclass(frozen=True)
class BackendRecord:
    """How to find one backend.

    ``unavailable_reason(device)`` returns None where the backend runs, else a sentence that says why
    it does not and what to do; it imports nothing heavy.
    """

    name: str
    what: str
    module: str
    class_name: str
    unavailable_reason: Callable[[torch.device], str | None]
    automatic_on: frozenset[str]  # device types for which backend=None may pick it


def _how_to_build() -> str:
    root = Path(__file__).parents[2]
    if (root / "CMakeLists.txt").exists():
        return (
            f"the package was imported from its sources in {root}, which are not built: leave that folder to "
            "use the one that is installed, or build them with pip install -e ."
        )
    return "reinstall the package with a C++17 compiler present"


def _cpu_reason(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it works on CPU tensors only, not on {device.type}"
    try:
        importlib.import_module("sfplus_kernels.backends.native")
    except ImportError as error:
        return (
            f"the compiled extension sfplus_kernels._C cannot be imported ({error}); "
            f"{_how_to_build()}"
        )
    return None


def _cuda_reason(device: torch.device) -> str | None:
    try:
        native: Any = importlib.import_module("sfplus_kernels.backends.native")._C
    except ImportError as error:
        return f"the compiled extension sfplus_kernels._C cannot be imported ({error})"
    if native.CUDA_MISSING:
        return (
            f"not built ({native.CUDA_MISSING}); install a wheel that has the CUDA kernels, or build with "
            "SFPLUS_CUDA=require to see what is missing"
        )
    reason = driver_problem(native.cuda_driver_version(), native.CUDA_COMPILER)
    if reason is not None:
        return reason
    if device.type != "cuda":
        return f"it works on cuda tensors, not on {device.type}"
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs, and this torch is for AMD's; the backend triton may serve"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    # that of the parameters and no other: asking takes memory there
    index = torch.cuda.current_device() if device.index is None else device.index
    return device_problem(native, index)


def _triton_reason(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return (
                "Triton runs CPU tensors only in its interpreter, which is for tests; "
                "set TRITON_INTERPRET=1 before Python starts"
            )
        return None
    if device.type not in ("cuda", "xpu"):
        return f"it works on cuda tensors, not on {device.type}"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return triton_problem(_version_of("triton")) or compiler_problem()


def compiler_problem() -> str | None:
    """Why Triton cannot build its launcher, which it does with a C compiler at the first launch, if so."""
    named = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([named] if named else ["gcc", "clang", "cc"])):
        wanted = f"CC={named}" if named else "gcc or clang"
        return f"Triton needs a C compiler, and {wanted} is not to be found; install one (apt install gcc)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Triton needs Python's headers; install them (apt install python3-dev)"
    return None


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # some builds have another name
        return None


def triton_problem(version: str | None) -> str | None:
    """Why a release of Triton, where it is known which, cannot compile the kernels, if so."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    if match is None or (int(match[1]), int(match[2])) >= OLDEST_TRITON:
        return None
    oldest = ".".join(map(str, OLDEST_TRITON))
    return f"Triton {version} is too old: {oldest} or later is needed; torch 2.8 is the first that brings it"


def _eager_reason(device: torch.device) -> str | None:
    if device.type == "mps":
        return "the run state is float64, which mps does not have; train on cpu or cuda"
    return None


_RECORDS = {
    record.name: record
    for record in (
        BackendRecord(
            "cpu",
            "compiled C++ kernels on threads and SIMD",
            "sfplus_kernels.backends.cpu",
            "CpuBackend",
            _cpu_reason,
            frozenset({"cpu"}),
        ),
        BackendRecord(
            "cuda",
            "compiled CUDA kernels",
            "sfplus_kernels.backends.cuda",
            "CudaBackend",
            _cuda_reason,
            frozenset({"cuda"}),
        ),
        BackendRecord(
            "triton",
            "Triton kernels",
            "sfplus_kernels.backends.triton.backend",
            "TritonBackend",
            _triton_reason,
            frozenset({"cuda"}),
        ),
        BackendRecord(
            "eager",
            "plain torch operations",
            "sfplus_kernels.backends.eager",
            "EagerBackend",
            _eager_reason,
            frozenset({"cpu", "cuda", "xpu"}),
        ),
    )
}


def names() -> list[str]:
    """Known backends, the preferred ones first."""
    return list(_RECORDS)


def requested(name: str | None) -> str | None:
    """``name``, or else that of ``SFPLUS_BACKEND``; None to choose. Raises ValueError if it is unknown."""
    source = "backend" if name is not None else ENVIRONMENT_VARIABLE
    wanted = os.environ.get(ENVIRONMENT_VARIABLE) or None if name is None else name
    if wanted is not None and wanted not in _RECORDS:
        raise ValueError(
            f"unknown backend {wanted!r} ({source}): expected one of {names()}, or None to choose"
        )
    return wanted


class Choice(NamedTuple):
    """A backend, and why it was not a quicker one."""

    name: str
    backend: Backend
    passed_over: str = ""  # of those that nobody named: why the preferred ones cannot be had


def select(name: str | None, device: torch.device) -> Choice:
    """The backend for ``device``: the named one, else that of ``SFPLUS_BACKEND``, else the best.

    Raises:
        ValueError: unknown name.
        RuntimeError: a named backend is unavailable (there is no silent fallback), or none fits.
    """
    wanted = requested(name)
    if wanted is not None:
        reason = _RECORDS[wanted].unavailable_reason(device)
        if reason is not None:
            raise RuntimeError(
                f"backend {wanted!r} is unavailable for parameters on {device}: {reason}; "
                "or pass backend=None to let the package choose"
            )
        return Choice(wanted, _load(wanted))
    reasons: list[str] = []
    for record in _RECORDS.values():
        if device.type not in record.automatic_on:
            continue
        reason = record.unavailable_reason(device)
        if reason is None:
            return Choice(record.name, _load(record.name), "; ".join(reasons))
        reasons.append(f"{record.name}: {reason}")
    why = "; ".join(reasons) or "no backend knows this device type"
    raise RuntimeError(f"no backend for parameters on {device}: {why}")


def report() -> dict[str, str]:
    """Each backend's name with "available" or the reason why it is not.

    A backend is available if it serves the CPU or, where there is one, the CUDA device.
    """
    types = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    devices = [torch.device(device_type) for device_type in types]
    lines = {}
    for record in _RECORDS.values():
        reasons = {device: record.unavailable_reason(device) for device in devices}
        available = [device for device, reason in reasons.items() if reason is None]
        # the reason on the device that this backend is made for, where there is such a device
        own = next((d for d in devices if d.type in record.automatic_on), devices[-1])
        lines[record.name] = "available" if available else str(reasons[own])
    return lines


@cache
def _load(name: str) -> Backend:
    record = _RECORDS[name]
    backend: Backend = getattr(importlib.import_module(record.module), record.class_name)()
    return backend
