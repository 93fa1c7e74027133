"""Where the CUDA compiler is: run by CMake, and used by the build backend. Standard library only.

``SFPLUS_CUDA`` says what is wanted: ``auto`` (build the CUDA kernels where that is possible), ``require``
(fail where it is not) or ``off``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

REQUIREMENTS = ["nvidia-cuda-nvrtc-cu12==12.9.*"]
"""The compiler for GPU code as a library. 12.9 is the last release whose code drivers from 525 on load, and
it knows the GPUs of 2017 (7.0) as well as those of 2025 (12.0)."""

MODES = ("auto", "require", "off")

MACHINE_CODE = (70, 80, 90, 100, 120)
"""Compute capabilities, times ten, that get machine code; it runs on later minor versions too: that of 7.0
on 7.5, whose own needs as many registers, and that of 8.0 on 8.6 and 8.9."""

WITHOUT_70 = 75
"""What a compiler of CUDA 13 has in place of 7.0."""

TEGRA = (87,)
"""Beside them on aarch64: code for a desktop GPU does not run on these boards."""

PTX = 90
"""What a driver compiles for GPUs that there is no machine code for."""

OLDEST = (12, 0)


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


def find_toolkit(environment: Mapping[str, str]) -> Path | None:
    """nvcc of CUDA_HOME (or CUDA_PATH): the one that somebody chose."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := environment.get(variable):
            nvcc = Path(home) / "bin" / "nvcc"
            if nvcc.is_file():
                return nvcc
            print(f"{variable} is {home}, where there is no bin/nvcc: looking on", file=sys.stderr)
    return None


def find_compiler(environment: Mapping[str, str], search_path: Iterable[str] = ()) -> Path | None:
    """That of ``find_toolkit``, else NVRTC from packages in ``search_path``, else nvcc from PATH.

    NVRTC comes from PyPI, and with torch's own wheels for CUDA.
    """
    if chosen := find_toolkit(environment):
        return chosen
    for folder in search_path:
        for place in ("cuda_nvrtc", "cu13"):
            found = sorted((Path(folder or ".") / "nvidia" / place / "lib").glob("libnvrtc.so.*"))
            if found:
                return found[0]
    on_path = shutil.which("nvcc", path=environment.get("PATH"))
    return Path(on_path) if on_path else None


def architectures(
    environment: Mapping[str, str], available: set[int], machine: str | None = None
) -> list[str]:
    """What to compile for, such as ``["sm_80", "compute_90"]``; the latter is PTX.

    ``CMAKE_CUDA_ARCHITECTURES`` ("80-real;90") and ``TORCH_CUDA_ARCH_LIST`` ("8.0 9.0+PTX") choose; else all
    of those above that the compiler has.

    Args:
        available: what the compiler has machine code for.

    Raises:
        ValueError: an architecture that is written otherwise, or that the compiler does not have.
    """
    asked: list[tuple[int, str]] = []  # (number, "real", "virtual" or "" for both)
    if text := environment.get("CMAKE_CUDA_ARCHITECTURES"):
        for word in re.split(r"[;,\s]+", text.strip()):
            match = re.fullmatch(r"(\d+)(?:-(real|virtual))?", word)
            if match is None:
                raise ValueError(
                    f"CMAKE_CUDA_ARCHITECTURES has {word!r}; expected such as 90 or 90-real"
                )
            asked.append((int(match[1]), match[2] or ""))
    elif text := environment.get("TORCH_CUDA_ARCH_LIST"):
        for word in re.split(r"[;,\s]+", text.strip()):
            match = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", word)
            if match is None:
                raise ValueError(
                    f"TORCH_CUDA_ARCH_LIST has {word!r}; expected such as 9.0 or 9.0+PTX"
                )
            asked.append((int(match[1] + match[2]), "" if match[3] else "real"))
    else:
        tegra = TEGRA if (machine or platform.machine()) == "aarch64" else ()
        oldest = {WITHOUT_70} if 70 not in available else set()
        wanted = sorted(available & {*MACHINE_CODE, *tegra, *oldest})
        return [*(f"sm_{number}" for number in wanted), f"compute_{PTX}"]
    unknown = sorted({number for number, _ in asked} - available)
    if unknown:
        raise ValueError(f"the compiler has no code for {unknown}; it has {sorted(available)}")
    code = [f"sm_{number}" for number, kind in asked if kind != "virtual"]
    return code + [f"compute_{number}" for number, kind in asked if kind != "real"]


if __name__ == "__main__":
    print(find_compiler(os.environ, sys.path) or "")
