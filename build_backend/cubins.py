"""The CUDA kernels as machine code: run by CMake, once for each architecture. Standard library only.

    python cubins.py plan --compiler PATH
    python cubins.py compile --compiler PATH --architecture sm_90 --sources csrc --output sm_90.code
    python cubins.py embed --name "NVRTC 12.9" --output cubins.cpp --images sm_90.code

``compute_90`` as the architecture gives PTX, which a driver compiles for GPUs that came later. The compiler
is NVRTC, a library that needs no driver, no C++ compiler and no header, or nvcc. Code is kept compressed: all
kernels for one architecture are 6 to 11 MB, much of it alike, and 0.4 MB then.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cuda_toolkit

DEFINITIONS = ["-DSFPLUS_ISA=device"]
"""The namespace of what csrc/math has for one instruction set: here the GPU's."""


def is_nvrtc(compiler: Path) -> bool:
    """Whether this is the library and not the program."""
    return compiler.name.startswith("libnvrtc")


class Nvrtc:
    """NVRTC by its C interface.

    Args:
        library: libnvrtc.so; its builtins are beside it.
    """

    def __init__(self, library: Path) -> None:
        for builtins in library.parent.glob("libnvrtc-builtins.so*"):
            ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        self._library: Any = ctypes.CDLL(str(library))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _check(self, code: int, what: str) -> None:
        if code != 0:
            raise RuntimeError(f"{what}: {self._library.nvrtcGetErrorString(code).decode()}")

    def version(self) -> tuple[int, int]:
        """Major and minor."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "version")
        return major.value, minor.value

    def architectures(self) -> set[int]:
        """Those that there can be machine code for, such as 90."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "architectures")
        numbers = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(numbers), "architectures")
        return set(numbers)

    def compile(self, architecture: str, sources: Path) -> bytes:
        """Machine code for ``sm_...``, PTX with a zero at its end for ``compute_...``."""
        options = [
            f"--gpu-architecture={architecture}",
            "--std=c++17",
            "--device-as-default-execution-space",  # lambdas
            f"--include-path={sources / 'cuda' / 'nvrtc'}",
            f"--include-path={sources / 'cuda'}",
            *DEFINITIONS,
        ]
        program = ctypes.c_void_p()
        text = (sources / "cuda" / "kernels.cu").read_bytes()
        made = self._library.nvrtcCreateProgram(
            ctypes.byref(program), text, b"kernels.cu", 0, None, None
        )
        self._check(made, "creating the program")
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = self._library.nvrtcCompileProgram(program, len(options), arguments)
        if code != 0:
            print(self._read(program, "ProgramLog").decode(), file=sys.stderr)
        self._check(code, f"compiling for {architecture}")
        return self._read(program, "PTX" if architecture.startswith("compute") else "CUBIN")

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(
            getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what
        )
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer), what)
        return buffer.raw


class Nvcc:
    """The same by nvcc, which wants its toolkit's headers and a C++ compiler.

    Args:
        program: nvcc.
        host_compiler: the C++ compiler, or None for nvcc's choice.
    """

    def __init__(self, program: Path, host_compiler: str | None) -> None:
        self._command = [str(program)] + (["-ccbin", host_compiler] if host_compiler else [])

    def _said(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join([*self._command, *arguments])}\n{done.stderr.strip()}")
        return done.stdout

    def version(self) -> tuple[int, int]:
        """Major and minor."""
        match = re.search(r"release (\d+)\.(\d+)", self._said("--version"))
        if match is None:
            raise RuntimeError("nvcc --version names no release")
        return int(match[1]), int(match[2])

    def architectures(self) -> set[int]:
        """Those that there can be machine code for, such as 90."""
        return {int(number) for number in re.findall(r"sm_(\d+)", self._said("--list-gpu-code"))}

    def compile(self, architecture: str, sources: Path) -> bytes:
        """Machine code for ``sm_...``, PTX with a zero at its end for ``compute_...``."""
        ptx = architecture.startswith("compute")
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "kernels"
            self._said(
                "--ptx" if ptx else "--cubin",
                f"--gpu-architecture={architecture}",
                "--std=c++17",
                f"--output-file={output}",
                *DEFINITIONS,
                str(sources / "cuda" / "kernels.cu"),
            )
            return output.read_bytes() + (b"\0" if ptx else b"")


def compiler_at(path: Path, host_compiler: str | None = None) -> Nvrtc | Nvcc:
    """NVRTC or nvcc, by the file's name."""
    return Nvrtc(path) if is_nvrtc(path) else Nvcc(path, host_compiler)


def plan(path: Path, host_compiler: str | None = None) -> list[str]:
    """The compiler's name and release, then what it is to compile for.

    Raises:
        ValueError: it is too old, or has no code for what the environment asks for.
        RuntimeError, OSError: it does not work.
    """
    compiler = compiler_at(path, host_compiler)
    release = compiler.version()
    if release < cuda_toolkit.OLDEST:
        oldest = ".".join(map(str, cuda_toolkit.OLDEST))
        raise ValueError(
            f"{path} is of CUDA {release[0]}.{release[1]}, and {oldest} or later is needed"
        )
    name = f"{'NVRTC' if is_nvrtc(path) else 'nvcc'} {release[0]}.{release[1]}"
    return [name, *cuda_toolkit.architectures(os.environ, compiler.architectures())]


def streams(architectures: list[str]) -> list[list[str]]:
    """What is compressed together, and in which order.

    What comes later in a stream is described by what came before: together images are a tenth smaller than
    alone. But to unpack one, those in front of it are unpacked too. So there is a stream of the older GPUs,
    the more usual ones first, one of the newer, and one of each PTX.
    """
    code = sorted(int(name[3:]) for name in architectures if name.startswith("sm_"))
    old, new = [n for n in code if n < 90], [n for n in code if n >= 90]
    old.sort(key=lambda number: (number < 80, number))
    together = [[f"sm_{number}" for number in numbers] for numbers in (old, new)]
    alone = [[name] for name in architectures if name.startswith("compute_")]
    return [stream for stream in [*together, *alone] if stream]


ALIGNMENT = 128
"""Of an image in its stream, as of what is in it."""
FILTERS = {"sm": {"lc": 0, "lp": 3, "pb": 4}, "compute": {"lc": 4, "lp": 0, "pb": 0}}
"""Instructions are words of 16 bytes, PTX is text: 3 to 5 % smaller than with the usual settings."""


def packed(images: Mapping[str, bytes]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """One stream, and of each image where it begins in what that unpacks to, with its size."""
    content = bytearray()
    places = {}
    for architecture, image in images.items():
        content += bytes(-len(content) % ALIGNMENT)
        places[architecture] = (len(content), len(image))
        content += image
    kind = next(iter(images)).split("_")[0]
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 25, **FILTERS[kind]}
    return lzma.compress(content, filters=[lzma2]), places


def embedding(compiler: str, made: Mapping[Path, Mapping[str, tuple[int, int]]]) -> str:
    """C++ source that holds the streams: csrc/cuda/cubins.h.

    Args:
        compiler: name and release.
        made: the files, with the places of their images.
    """
    parts = ['#include "cuda/cubins.h"', ""]
    rows = []
    for number, (path, places) in enumerate(made.items()):
        symbol = f"sfplus_stream_{number}"
        lines = [
            ".pushsection .rodata",
            *(f".hidden {symbol}_{end}" for end in ("begin", "end")),
            *(f".global {symbol}_{end}" for end in ("begin", "end")),
            f"{symbol}_begin:",
            f'.incbin "{path}"',
            f"{symbol}_end:",
            ".byte 0",
            ".popsection",
        ]
        quoted = "".join("    " + json.dumps(line + "\n") + "\n" for line in lines)
        parts += [f"asm(\n{quoted.rstrip()});"]
        parts += [f'extern "C" const char {symbol}_{end}[];' for end in ("begin", "end")]
        rows += [
            f'    {{"{architecture}", {symbol}_begin, {symbol}_end, {first}, {size}}},'
            for architecture, (first, size) in places.items()
        ]
    parts += [
        "",
        "namespace sfplus {",
        "namespace cuda {",
        "const Image kImages[] = {",
        *rows,
        "};",
        f"const std::size_t kImageCount = {len(rows)};",
        f'const char kCompiler[] = "{compiler}";',
        "}  // namespace cuda",
        "}  // namespace sfplus",
    ]
    return "\n".join(parts) + "\n"


def embed(compiler: str, images: Mapping[str, Path], output: Path) -> None:
    """Write the streams beside ``output``, and there the source that holds them."""

    def write(number: int, stream: list[str]) -> tuple[Path, dict[str, tuple[int, int]]]:
        code, places = packed({name: images[name].read_bytes() for name in stream})
        path = output.with_name(f"stream_{number}.xz")
        path.write_bytes(code)
        return path, places

    together = streams(list(images))
    with ThreadPoolExecutor() as threads:  # xz lets other threads run
        made = dict(threads.map(write, range(len(together)), together))
    output.write_text(embedding(compiler, made))


def main() -> None:
    """Say what there is to compile, compile for one architecture, or write the source that holds it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=["plan", "compile", "embed"])
    parser.add_argument("--compiler", type=Path)
    parser.add_argument("--host-compiler")
    parser.add_argument("--architecture")
    parser.add_argument("--sources", type=Path, help="the folder csrc")
    parser.add_argument("--name", help="of the compiler, with its release")
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--images", type=Path, nargs="*", help="code, to be compressed and embedded"
    )
    arguments = parser.parse_args()
    if arguments.task == "embed":
        images = {path.stem: path for path in arguments.images}
        embed(arguments.name, images, arguments.output)
        return
    try:
        if arguments.task == "plan":
            print(";".join(plan(arguments.compiler, arguments.host_compiler)))
            return
        compiler = compiler_at(arguments.compiler, arguments.host_compiler)
        made = compiler.compile(arguments.architecture, arguments.sources)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))
    arguments.output.write_bytes(made)


if __name__ == "__main__":
    main()
