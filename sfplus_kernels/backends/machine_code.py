"""The CUDA kernels' machine code: which of it a GPU and its driver can run, and loading that.

The extension holds it compressed, an image for each architecture, several in a stream, and PTX for GPUs that
came later. No context is made on any device but the one that it is loaded for.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import Any

OLDEST_DRIVER = 12000
"""1000 major + 10 minor of the oldest CUDA whose driver (525) loads machine code of any CUDA 12."""


def driver_problem(driver: int, compiler: str) -> str | None:
    """Why a driver cannot serve code of this compiler, if so.

    Args:
        driver: 1000 major + 10 minor of the newest CUDA that it serves; 0 if there is none.
        compiler: name and release, such as "NVRTC 12.9". A driver loads machine code of its own major
            release, of any minor one, and of earlier ones.
    """
    if driver == 0:
        return "no NVIDIA driver"
    oldest = max(OLDEST_DRIVER, 1000 * _release(compiler)[0])
    if driver < oldest:
        return (
            f"driver too old: it serves CUDA {_dotted(driver)}, and the kernels, of {compiler}, need "
            f"{_dotted(oldest)} or later; update the NVIDIA driver"
        )
    return None


def image_for(
    capability: tuple[int, int], driver: int, compiler: str, images: Collection[str]
) -> str:
    """The name of the image to load: machine code of the GPU's major number, else PTX.

    Args:
        capability: of the GPU, such as (9, 0).
        driver: 1000 major + 10 minor of the newest CUDA that it serves.
        compiler: that made the images; an earlier driver does not compile its PTX.
        images: their names, such as "sm_90" and "compute_90".

    Raises:
        RuntimeError: there is none for this GPU; the message says whether GPU or driver is too old.
    """
    major, minor = capability
    number = 10 * major + minor
    code = sorted(int(name[3:]) for name in images if name.startswith("sm_"))
    fitting = [n for n in code if n // 10 == major and n <= number]
    if fitting:
        return f"sm_{fitting[-1]}"
    ptx = [int(name[8:]) for name in images if name.startswith("compute_")]
    older = sorted(n for n in ptx if n <= number)
    has = ", ".join(f"{n // 10}.{n % 10}" for n in code) or "none"
    here = f"this GPU has compute capability {major}.{minor}, and this build machine code for {has}"
    if not older:
        raise RuntimeError(f"{here}; build the package for it: CMAKE_CUDA_ARCHITECTURES={number}")
    needed = 1000 * _release(compiler)[0] + 10 * _release(compiler)[1]
    if driver < needed:
        raise RuntimeError(
            f"{here}; its PTX, of {compiler}, needs a driver that serves CUDA {_dotted(needed)}, and this "
            f"one serves {_dotted(driver)}: update the NVIDIA driver"
        )
    return f"compute_{older[-1]}"


@cache
def device_problem(native: Any, device: int) -> str | None:
    """Load the kernels for a device, once; say why they cannot be had there, if so.

    Args:
        native: the extension.
        device: the device's number.
    """
    try:
        capability, driver = native.cuda_capability(device), native.cuda_driver_version()
        name = image_for(capability, driver, native.CUDA_COMPILER, native.CUDA_IMAGES)
        native.cuda_load(device, unpacked(native.CUDA_IMAGES[name]))
    except ImportError as error:
        return f"the machine code cannot be unpacked: {error}"
    except RuntimeError as error:
        return str(error)
    return None


def unpacked(image: tuple[memoryview, int, int]) -> bytes:
    """The code of one architecture.

    Args:
        image: the stream, and in what that unpacks to the code's first byte and its size. What comes after
            it is left packed.

    Raises:
        ImportError: Python was built without lzma.
    """
    import lzma

    stream, first, size = image
    return lzma.LZMADecompressor().decompress(stream, first + size)[first:]


def _release(compiler: str) -> tuple[int, int]:
    match = re.search(r"(\d+)\.(\d+)$", compiler)
    assert match is not None, compiler
    return int(match[1]), int(match[2])


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
