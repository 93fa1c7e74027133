"""The kernels of csrc/cuda on the CPU, launched by the code that launches them on a GPU.

The C++ compiler compiles the kernels' source, which is the one that NVRTC compiles, against
``host_cuda/device.h``, and csrc/cuda/driver.cpp finds a driver library of ours. What this shows is logic:
which thread takes which element, tails, tables, barriers, skipped steps; contexts, launches and errors. What
it cannot show is what the GPU's compiler and memory do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
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
    flags = [*FLAGS, *(CONTRACTED if contracted else UNCONTRACTED)]
    sources = [
        *(CSRC / "cuda" / f"{name}.cpp" for name in ("bindings", "driver", "passes")),
        *sorted(STAND_IN.glob("*.cpp")),
    ]
    digest = hashlib.sha256(
        " ".join([*flags, pybind11.__version__, sysconfig.get_platform()]).encode()
    )
    digest.update(str(sysconfig.get_config_var("EXT_SUFFIX")).encode())
    for path in sorted([*CSRC.rglob("*.*"), *STAND_IN.iterdir()]):
        digest.update(path.read_bytes())
    library = ROOT / "build" / "host_cuda" / digest.hexdigest()[:16] / "host_cuda.so"
    if not library.exists():
        _build(sources, flags, library)
    spec = importlib.util.spec_from_file_location("host_cuda", library)
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    native.settings.driver_version = 12090
    native.cuda_load(0, b"any")
    return native


def _build(sources: list[Path], flags: list[str], library: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    include = [STAND_IN, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    includes = [f"-I{path}" for path in include]
    # the driver's functions are in the same file
    own = [f'-DSFPLUS_LIBCUDA="{library}"']
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:

        def compile_one(source: Path) -> str:
            made = str(Path(scratch) / f"{source.parent.name}-{source.stem}.o")
            _run([compiler, *flags, *own, *includes, "-c", str(source), "-o", made])
            return made

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sources))
        linked = Path(scratch) / "host_cuda.so"
        _run([compiler, "-shared", *objects, "-ldl", "-o", str(linked)])
        linked.replace(library)  # at once: another process may be looking


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
