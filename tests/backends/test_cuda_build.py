"""How the build finds a CUDA compiler, and what it asks of the package index."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from sfplus_kernels.backends.cuda import (
    LARGEST_CHUNK,
    SMALLEST_CHUNK,
    WARPS_PER_BLOCK,
    choose_chunk_size,
)
from sfplus_kernels.backends.machine_code import unpacked
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS

sys.path.insert(0, str(ROOT / "build_backend"))
import cubins
import cuda_toolkit


def make_nvcc(folder: Path) -> Path:
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return nvcc


def test_the_compiler_is_that_of_cuda_home_then_of_pypi_then_of_path(tmp_path: Path) -> None:
    home = make_nvcc(tmp_path / "home" / "bin")
    on_path = make_nvcc(tmp_path / "path")
    site, path = str(tmp_path / "site"), str(tmp_path / "path")
    nvrtc = tmp_path / "site" / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
    nvrtc.parent.mkdir(parents=True)
    nvrtc.touch()
    environment = {"CUDA_HOME": str(tmp_path / "home"), "PATH": path}
    assert cuda_toolkit.find_compiler(environment, [site]) == home
    assert cuda_toolkit.find_compiler({"CUDA_PATH": environment["CUDA_HOME"], "PATH": ""}) == home
    assert cuda_toolkit.find_compiler({"PATH": path}, ["", site]) == nvrtc
    assert cuda_toolkit.find_compiler({"PATH": path}) == on_path
    assert cuda_toolkit.find_compiler({"PATH": ""}, []) is None
    assert cubins.is_nvrtc(nvrtc)
    assert not cubins.is_nvrtc(on_path)


ALL = {50, 70, 75, 80, 86, 87, 90, 100, 120}


def test_architectures() -> None:
    choose = cuda_toolkit.architectures
    usual = ["sm_70", "sm_80", "sm_90", "sm_100", "sm_120", "compute_90"]
    assert choose({}, ALL, "x86_64") == usual
    assert "sm_87" in choose({}, ALL, "aarch64")
    # those that the compiler has: CUDA 13 knows no 7.0, CUDA 12.0 nothing after 9.0
    assert choose({}, ALL - {50, 70}, "x86_64") == ["sm_75", *usual[1:]]
    assert choose({}, {70, 75, 80, 86, 90}, "x86_64")[-2:] == ["sm_90", "compute_90"]
    assert choose({"CMAKE_CUDA_ARCHITECTURES": "80-real;90"}, ALL) == [
        "sm_80",
        "sm_90",
        "compute_90",
    ]
    assert choose({"CMAKE_CUDA_ARCHITECTURES": "90-virtual"}, ALL) == ["compute_90"]
    assert choose({"TORCH_CUDA_ARCH_LIST": "8.0 9.0+PTX"}, ALL) == ["sm_80", "sm_90", "compute_90"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, "has 'Hopper'; expected such as 9.0"),
        ({"CMAKE_CUDA_ARCHITECTURES": "native"}, "has 'native'; expected such as 90"),
        ({"TORCH_CUDA_ARCH_LIST": "3.5"}, r"no code for \[35\]; it has \[50"),
    ],
)
def test_architectures_that_cannot_be(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cuda_toolkit.architectures(environment, ALL)


@pytest.mark.parametrize(("release", "works"), [("11.8", False), ("12.0", True), ("13.0", True)])
def test_a_toolkit_from_12_0_on_does(tmp_path: Path, release: str, works: bool) -> None:
    nvcc = make_nvcc(tmp_path / "bin")
    nvcc.write_text(
        f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V'; echo sm_80 sm_90\n"
    )
    if works:
        assert cubins.plan(nvcc) == [f"nvcc {release}", "sm_80", "sm_90", "compute_90"]
    else:
        with pytest.raises(ValueError, match=r"is of CUDA 11\.8, and 12\.0 or later is needed"):
            cubins.plan(nvcc)


def test_a_compiler_that_does_not_work(tmp_path: Path) -> None:
    nvcc = make_nvcc(tmp_path / "bin")
    nvcc.write_text("#!/bin/sh\necho no licence >&2; exit 3\n")
    with pytest.raises(RuntimeError, match="no licence"):
        cubins.plan(nvcc)


def test_like_images_share_a_stream_the_usual_ones_first() -> None:
    usual = ["sm_70", "sm_80", "sm_90", "sm_100", "sm_120", "compute_90"]
    assert cubins.streams(usual) == [
        ["sm_80", "sm_70"],
        ["sm_90", "sm_100", "sm_120"],
        ["compute_90"],
    ]
    assert cubins.streams(["sm_75", "sm_80", "sm_87"]) == [["sm_80", "sm_87", "sm_75"]]
    assert cubins.streams(["compute_90"]) == [["compute_90"]]


def test_images_are_held_by_the_extension(tmp_path: Path) -> None:
    """In C++ that the assembler fills: the source names each stream, and what is in it where."""
    code = {"sm_90": b"instructions" * 100, "sm_120": b"instruction!" * 90, "compute_90": b"text\0"}
    images = {}
    for name, content in code.items():
        images[name] = tmp_path / f"{name}.code"
        images[name].write_bytes(content)
    output = tmp_path / "cubins.cpp"
    cubins.embed("NVRTC 12.9", images, output)
    source = output.read_text()
    assert 'kCompiler[] = "NVRTC 12.9"' in source
    assert "kImageCount = 3" in source
    rows = re.findall(
        r'\{"(\w+)", sfplus_stream_(\d)_begin, sfplus_stream_\2_end, (\d+), (\d+)\}', source
    )
    assert [row[:2] for row in rows] == [("sm_90", "0"), ("sm_120", "0"), ("compute_90", "1")]
    for name, stream, first, size in rows:
        path = tmp_path / f"stream_{stream}.xz"
        assert f'.incbin \\"{path}\\"' in source
        assert unpacked((memoryview(path.read_bytes()), int(first), int(size))) == code[name]
        assert int(first) % 128 == 0


def test_a_cuda_home_without_nvcc_is_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_path = make_nvcc(tmp_path / "path")
    environment = {"CUDA_HOME": str(tmp_path), "PATH": str(tmp_path / "path")}
    assert cuda_toolkit.find_compiler(environment) == on_path
    assert f"CUDA_HOME is {tmp_path}, where there is no bin/nvcc" in capsys.readouterr().err


def test_modes() -> None:
    assert cuda_toolkit.mode({}) == cuda_toolkit.mode({"SFPLUS_CUDA": ""}) == "auto"
    assert cuda_toolkit.mode({"SFPLUS_CUDA": "require"}) == "require"
    with pytest.raises(
        ValueError, match="SFPLUS_CUDA is 'yes'; expected one of auto, require, off"
    ):
        cuda_toolkit.mode({"SFPLUS_CUDA": "yes"})


def test_platforms() -> None:
    assert cuda_toolkit.supported("Linux", "x86_64")
    assert cuda_toolkit.supported("Linux", "aarch64")
    assert not cuda_toolkit.supported("Darwin", "arm64")
    assert not cuda_toolkit.supported("Windows", "AMD64")


class Backend:
    """build_backend/sfplus_build.py without scikit-build-core, which only a build has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import types

        meta: Any = types.ModuleType("scikit_build_core.setuptools.build_meta")
        meta.get_requires_for_build_wheel = lambda settings=None: ["ninja"]
        meta.get_requires_for_build_editable = lambda settings=None: ["ninja"]
        parent: Any = types.ModuleType("scikit_build_core.setuptools")
        parent.build_meta = meta
        for name, module in {
            "scikit_build_core": types.ModuleType("scikit_build_core"),
            "scikit_build_core.setuptools": parent,
            "scikit_build_core.setuptools.build_meta": meta,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "sfplus_build", raising=False)
        import sfplus_build

        self.module: Any = sfplus_build


@pytest.mark.parametrize(
    ("wanted", "nvcc", "index", "expected"),
    [
        ("off", "", True, []),
        ("auto", "CUDA_HOME", True, []),  # somebody's choice
        ("auto", "", True, cuda_toolkit.REQUIREMENTS),
        ("auto", "PATH", True, cuda_toolkit.REQUIREMENTS),  # whose code runs on more drivers
        ("auto", "PATH", False, []),
        ("auto", "", False, []),
        ("require", "PATH", False, []),
        ("require", "", False, cuda_toolkit.REQUIREMENTS),  # the installer says what is missing
    ],
)
def test_the_compiler_is_asked_of_the_index_only_where_needed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wanted: str,
    nvcc: str,
    index: bool,
    expected: list[str],
) -> None:
    backend = Backend(monkeypatch).module
    monkeypatch.setenv("SFPLUS_CUDA", wanted)
    monkeypatch.setattr(cuda_toolkit, "supported", lambda: True)
    found = Path("nvcc")
    monkeypatch.setattr(
        cuda_toolkit, "find_toolkit", lambda env: found if nvcc == "CUDA_HOME" else None
    )
    monkeypatch.setattr(cuda_toolkit, "find_compiler", lambda env: found if nvcc else None)
    monkeypatch.setattr(backend, "can_be_had", lambda requirements: index)
    assert backend.get_requires_for_build_wheel() == ["ninja", *expected]
    assert backend.get_requires_for_build_editable() == ["ninja", *expected]
    without = wanted == "auto" and not nvcc and not index
    assert ("WITHOUT CUDA KERNELS" in capsys.readouterr().err) == without


def test_max_jobs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "3")
    monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
    Backend(monkeypatch)
    assert os.environ.pop("CMAKE_BUILD_PARALLEL_LEVEL") == "3"


def test_the_backend_is_the_one_in_the_tree() -> None:
    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert (ROOT / system["backend-path"][0] / f"{system['build-backend']}.py").exists()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on PATH")
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SFPLUS_CUDA": "maybe"}, "SFPLUS_CUDA is 'maybe'; expected auto, require or off"),
        ({"SFPLUS_CUDA": "off"}, "MISSING=SFPLUS_CUDA=off"),
        ({"SFPLUS_CUDA": "auto"}, "Building WITHOUT CUDA KERNELS"),
        ({"SFPLUS_CUDA": "require"}, "cannot be built: there was no NVRTC"),
    ],
)
def test_cmake_says_what_it_does_without_nvcc(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    program = tmp_path / "probe.cmake"
    program.write_text(
        "cmake_minimum_required(VERSION 3.24)\n"
        "set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR x86_64)\n"
        f'include("{ROOT}/cmake/cuda.cmake")\n'
        "message(STATUS MISSING=${SFPLUS_CUDA_MISSING})\n"
    )
    python = tmp_path / "python"  # one whose packages have no nvcc
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    cmake = shutil.which("cmake")
    assert cmake is not None
    done = subprocess.run(
        [cmake, f"-DPython_EXECUTABLE={python}", "-P", str(program)],
        cwd=tmp_path,
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    output = " ".join((done.stdout + done.stderr).split())
    assert said in output
    assert (done.returncode == 0) == (environment["SFPLUS_CUDA"] in ("off", "auto"))


ONE_OF_EACH = """
#include "interpolate_half.cuh"
#include "update.cuh"
#include "update_quarter.cuh"
namespace sfplus {
namespace cuda {
__global__ void update(const Table table, const __grid_constant__ Finish finish) {
  update_pass<false, Direction::PLAIN_ADAM, float, float, float>(table, finish);
  update_quarter_pass<Direction::ADAM, bfloat16, float>(table, finish);
  interpolate_half_pass<Move::TO_Y, bfloat16, std::uint16_t>(table, finish.run);
}
}  // namespace cuda
}  // namespace sfplus
"""


def test_nvcc_takes_the_source_too(tmp_path: Path) -> None:
    """It is stricter than NVRTC, which makes the kernels elsewhere: functions say what may call them."""
    nvcc = cuda_toolkit.find_toolkit(os.environ) or shutil.which("nvcc")
    if nvcc is None or shutil.which("c++") is None:
        pytest.skip("needs nvcc and a C++ compiler")
    source = tmp_path / "passes.cu"
    source.write_text(ONE_OF_EACH)
    options = [
        "--cubin",
        "--gpu-architecture=sm_90",
        "--std=c++17",
        f"-I{ROOT / 'csrc' / 'cuda'}",
        *cubins.DEFINITIONS,
    ]
    command = [str(nvcc), *options, f"--output-file={tmp_path / 'passes'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


# -- how much of a tensor a warp takes -------------------------------------------------------------------


@given(st.integers(0, 2**42))
def test_chunks_are_powers_of_two_in_bounds(n_elements: int) -> None:
    size = choose_chunk_size(n_elements)
    assert SMALLEST_CHUNK <= size <= LARGEST_CHUNK
    assert size & (size - 1) == 0  # so that a chunk of an aligned tensor is aligned
    assert size <= choose_chunk_size(n_elements + 1)


@given(st.integers(1, 2**42))
def test_there_is_a_chunk_for_every_warp_where_that_is_possible(n_elements: int) -> None:
    size, warps = choose_chunk_size(n_elements), VIRTUAL_BLOCKS * WARPS_PER_BLOCK
    assert size == SMALLEST_CHUNK or n_elements // size >= warps


def test_the_kernels_are_launched_as_planned() -> None:
    """The figure that the chunk size is chosen by is the kernels' own."""
    source = (ROOT / "csrc" / "cuda" / "threads.h").read_text()
    assert f"constexpr int kWarps = {WARPS_PER_BLOCK};" in source
