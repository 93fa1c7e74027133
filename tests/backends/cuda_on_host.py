"""The kernels of csrc/cuda on the CPU, launched by the code that launches them on a GPU.

The C++ compiler compiles the kernels' source, which is the one that NVRTC compiles, against
``host_cuda/device.h``, and csrc/cuda/driver.cpp finds a driver library of ours. What this shows is logic:
which thread takes which element, tails, tables, barriers, skipped steps; contexts, launches and errors. What
it cannot show is what the GPU's compiler and memory do.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pybind11
from support import ROOT

from sfplus_kernels.backends.cuda import CudaBackend
from sfplus_kernels.backends.registry import BackendRecord

CSRC = ROOT / "csrc"
STAND_IN = Path(__file__).with_name("host_cuda")
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-DSFPLUS_ISA=device",
]
# the kernels' own pragmas; setjmp between fibers, which fortified builds take for an error; a pass in which
# GCC 12 crashes
FLAGS += ["-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-fno-tree-sra"]
UNCONTRACTED = ["-ffp-contract=off"]
CONTRACTED = ["-ffp-contract=fast", "-mfma", "-fexpensive-optimizations"]
"""A product and a sum in one instruction, rounded once: a GPU's arithmetic. GCC's -O1 alone makes none."""


def contracts() -> bool:
    """Whether this machine has such an instruction."""
    cpus = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpus.exists() and " fma " in cpus.read_text()


@cache
def module(contracted: bool = False) -> Any:
    """Built once for its sources; other processes of the tests find it."""
    digest = hashlib.sha256(
        " ".join(
            [*FLAGS, *UNCONTRACTED, *CONTRACTED, pybind11.__version__, sysconfig.get_platform()]
        ).encode()
    )
    digest.update(str(sysconfig.get_config_var("EXT_SUFFIX")).encode())
    for path in sorted([*CSRC.rglob("*.*"), *STAND_IN.iterdir()]):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "host_cuda" / digest.hexdigest()[:16]
    library = folder / ("contracted.so" if contracted else "host_cuda.so")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # else each process of the tests would build it, at once
        if not library.exists():
            _build(library, CONTRACTED if contracted else UNCONTRACTED)
    spec = importlib.util.spec_from_file_location("host_cuda", library)
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    native.settings.driver_version = 12090
    native.cuda_load(0, b"any")
    return native


def _build(library: Path, arithmetic: list[str]) -> None:
    """The kernels, and what knows the library's name, are its own; other objects both libraries share."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    include = [STAND_IN, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    command = [compiler, *FLAGS, *(f"-I{path}" for path in include), "-c"]
    # the driver's functions are in the same file
    by_name = {
        STAND_IN / "kernels.cpp": arithmetic,
        CSRC / "cuda" / "driver.cpp": [*UNCONTRACTED, f'-DSFPLUS_LIBCUDA="{library}"'],
    }
    shared = {*STAND_IN.glob("*.cpp"), CSRC / "cuda" / "bindings.cpp", CSRC / "cuda" / "passes.cpp"}

    def compile_one(source: Path) -> str:
        own = by_name.get(source)
        prefix = "" if own is None else f"{library.stem}-"
        made = library.with_name(f"{prefix}{source.parent.name}-{source.stem}.o")
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            _run([*command, *(own or UNCONTRACTED), str(source), "-o", str(unfinished)])
            unfinished.replace(made)  # whole or not at all: a test run may be stopped
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        # the kernels first: of an inline function that others have too the linker takes the first
        objects = list(pool.map(compile_one, [*by_name, *sorted(shared - by_name.keys())]))
    unfinished = library.with_suffix(".unfinished")
    _run([compiler, "-shared", *objects, "-ldl", "-o", str(unfinished)])
    unfinished.replace(library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    assert not done.stderr, done.stderr


class CudaOnHost(CudaBackend):
    """The ``cuda`` backend on CPU tensors."""

    def __init__(self, contracted: bool = False) -> None:
        super().__init__(module(contracted))


class CudaOnHostContracted(CudaOnHost):
    """The same with products and sums fused."""

    def __init__(self) -> None:
        super().__init__(contracted=True)


def _record(class_name: str) -> BackendRecord:
    return BackendRecord(
        "cuda_on_host",
        "the CUDA kernels, compiled for the host",
        "cuda_on_host",
        class_name,
        lambda _: None,
        frozenset(),
    )


RECORD = _record("CudaOnHost")
CONTRACTED_RECORD = _record("CudaOnHostContracted")
