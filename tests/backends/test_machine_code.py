"""Which machine code a GPU and its driver get, and what is said where there is none for them."""

from __future__ import annotations

import lzma
from typing import Any

import pytest

from sfplus_kernels.backends.machine_code import (
    device_problem,
    driver_problem,
    image_for,
    unpacked,
)

NVRTC = "NVRTC 12.9"
IMAGES = ["sm_70", "sm_80", "sm_90", "sm_100", "sm_120", "compute_90"]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), "sm_70"),  # V100
        ((7, 5), "sm_70"),  # T4
        ((8, 0), "sm_80"),
        ((8, 6), "sm_80"),  # of the same major number
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 1), "sm_120"),
        ((11, 0), "compute_90"),
        ((13, 0), "compute_90"),
    ],
)
def test_a_gpu_gets_code_of_its_major_number_else_ptx(
    capability: tuple[int, int], expected: str
) -> None:
    assert image_for(capability, 13000, NVRTC, IMAGES) == expected


@pytest.mark.parametrize("driver", [12000, 12040, 12090, 13000])
def test_machine_code_needs_no_driver_of_the_compilers_release(driver: int) -> None:
    assert driver_problem(driver, NVRTC) is None
    assert image_for((8, 0), driver, NVRTC, IMAGES) == "sm_80"


def test_ptx_does() -> None:
    with pytest.raises(
        RuntimeError, match=r"11\.0.*PTX, of NVRTC 12\.9, needs a driver.*12\.9.*12\.4"
    ):
        image_for((11, 0), 12040, NVRTC, IMAGES)


def test_a_gpu_that_is_too_old_is_told_what_there_is() -> None:
    with pytest.raises(
        RuntimeError, match=r"6\.1, and this build machine code for 7\.0, 8\.0.*=61"
    ):
        image_for((6, 1), 12090, NVRTC, IMAGES)
    with pytest.raises(RuntimeError, match="machine code for none"):
        image_for((8, 0), 12090, NVRTC, ["compute_90"])


@pytest.mark.parametrize(
    ("driver", "compiler", "said"),
    [
        (0, NVRTC, "no NVIDIA driver"),
        (11080, NVRTC, r"serves CUDA 11.8, and the kernels, of NVRTC 12.9, need 12.0 or later"),
        (12080, "nvcc 13.0", r"serves CUDA 12.8, and the kernels, of nvcc 13.0, need 13.0"),
    ],
)
def test_a_driver_that_is_too_old(driver: int, compiler: str, said: str) -> None:
    assert said in str(driver_problem(driver, compiler))


def test_code_is_found_in_its_stream_and_what_comes_later_is_not_unpacked() -> None:
    whole = lzma.compress(bytes(range(200)))
    stream = memoryview(whole)
    for first, size in [(0, 7), (128, 72), (199, 1)]:
        assert unpacked((stream, first, size)) == bytes(range(first, first + size))
    assert unpacked((stream[: len(whole) - 40], 0, 100)) == bytes(range(100))


class Extension:
    """With images that say their names, on a machine with one kind of GPU."""

    CUDA_COMPILER = NVRTC
    CUDA_IMAGES = {  # noqa: RUF012
        name: (memoryview(lzma.compress(name.encode())), 0, len(name)) for name in IMAGES
    }

    def __init__(self, capability: tuple[int, int], problem: str = "") -> None:
        self._capability, self._problem = capability, problem
        self.loaded: list[tuple[int, bytes]] = []

    def cuda_driver_version(self) -> int:
        return 12040

    def cuda_capability(self, device: int) -> tuple[int, int]:
        return self._capability

    def cuda_load(self, device: int, image: bytes) -> None:
        if self._problem:
            raise RuntimeError(self._problem)
        self.loaded.append((device, image))


def test_it_is_loaded_once_for_a_device_and_on_no_other() -> None:
    extension: Any = Extension((8, 9))
    assert device_problem(extension, 1) is None
    assert device_problem(extension, 1) is None
    assert extension.loaded == [(1, b"sm_80")]


def test_what_the_driver_says_is_the_reason() -> None:
    assert "1.0" in str(device_problem(Extension((1, 0)), 0))
    assert device_problem(Extension((9, 0), "out of memory (OOM)"), 0) == "out of memory (OOM)"
