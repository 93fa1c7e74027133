"""Where the CUDA compiler is: run by CMake, and used by the build backend. Standard library only.

``SFPLUS_CUDA`` says what is wanted: ``auto`` (build the CUDA kernels where that is possible), ``require``
(fail where it is not) or ``off``.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

REQUIREMENTS = [
    f"nvidia-{name}==13.0.*"
    for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
]
"""The compiler, its front and back ends, and the runtime's headers and static library, of one release."""

MODES = ("auto", "require", "off")


def mode(environment: Mapping[str, str]) -> str:
    """What ``SFPLUS_CUDA`` asks for.

    Raises:
        ValueError: something unknown.
    """
    wanted = environment.get("SFPLUS_CUDA") or "auto"
    if wanted not in MODES:
        raise ValueError(f"SFPLUS_CUDA is {wanted!r}; expected one of {', '.join(MODES)}")
    return wanted


def supported(system: str | None = None, machine: str | None = None) -> bool:
    """Whether this platform gets CUDA kernels at all."""
    system, machine = system or platform.system(), machine or platform.machine()
    return system == "Linux" and machine in ("x86_64", "aarch64")


def find_nvcc(environment: Mapping[str, str], search_path: Iterable[str] = ()) -> Path | None:
    """nvcc from CUDA_HOME (or CUDA_PATH), else from PATH, else from PyPI's packages in ``search_path``."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := environment.get(variable):
            nvcc = Path(home) / "bin" / "nvcc"
            if nvcc.is_file():
                return nvcc
            print(f"{variable} is {home}, where there is no bin/nvcc: looking on", file=sys.stderr)
    if on_path := shutil.which("nvcc", path=environment.get("PATH")):
        return Path(on_path)
    for folder in search_path:
        nvcc = Path(folder or ".") / "nvidia" / "cu13" / "bin" / "nvcc"
        if nvcc.is_file():
            return nvcc
    return None


if __name__ == "__main__":
    print(find_nvcc(os.environ, sys.path) or "")
