"""What nvcc made of the CUDA kernels, read from the built extension: no GPU and no compiler is needed.

``python tests/backends/cuda_binary.py`` prints the table of docs/performance.md.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import sfplus_kernels._C as _C

THREADS = 128
"""Of a block of every memory pass, as ``kThreads`` in csrc/cuda/walk.cuh."""

TURNS = {"reduce": 2, "reduce g only": 4, "interpolate": 2, "update sgd": 2}
"""Packs of each tensor under way in a thread, where it is not one."""

BITS = {"fp64": 64, "fp32": 32, "bf16": 16, "fp16": 16}
TYPES = {"double": "fp64", "float": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DIRECTIONS = ("adam", "no momentum", "sgd")
MOVES = ("to_x", "to_y", "shift", "expose_z", "absorb_z")


@dataclass(frozen=True)
class Kernel:
    """One kernel of one architecture. ``arguments`` are its template's: dtypes by their short names."""

    name: str
    arguments: tuple[str, ...]
    registers: int
    stack: int
    local: int
    sass: str = field(default="", repr=False)

    @property
    def is_memory_pass(self) -> bool:
        return bool(self.arguments)

    @property
    def label(self) -> str:
        return " ".join((self.name, *self.arguments))

    @property
    def state(self) -> str:
        """dtype of the state: the first of the arguments, as the second follows it."""
        return "fp64" if self.arguments[0] == "fp64" else "fp32"

    @property
    def turns(self) -> int:
        return TURNS.get(self.name, 1)

    @property
    def resident_warps(self) -> int:
        """Of a multiprocessor with 65536 registers, of which a thread gets eight at a time."""
        per_block = -(-self.registers // 8) * 8 * THREADS
        return min(65536 // per_block * THREADS // 32, 64)

    @property
    def element_bits(self) -> tuple[list[int], list[int]]:
        """Of each tensor that is read, and of each that is written."""
        state = BITS[self.state]
        if self.name.startswith("reduce"):
            return ([] if self.name.endswith("only") else [state]) + [BITS[self.arguments[1]]], []
        own = [BITS[self.arguments[0]]] if BITS[self.arguments[0]] < state else []
        if self.name.startswith("update"):
            n_state = {"adam": 4, "no momentum": 3, "sgd": 2}[self.name.removeprefix("update ")]
            return [state] * n_state + [BITS[self.arguments[1]]], [state] * n_state + own
        move = self.arguments[1]
        reads = [state] if own and move == "to_y" else [state] * 2
        if own and move == "absorb_z":
            reads = reads + own
        writes_y = [] if own and move in ("to_x", "to_y") else [state]
        writes_e = [state] if move in ("expose_z", "absorb_z") else []
        return reads, writes_y + writes_e + own

    @property
    def pack(self) -> int:
        """Elements that a thread accesses at once: 16 bytes of state, else of gradients."""
        only = self.name == "reduce g only"
        return 128 // BITS[self.arguments[1] if only else self.state]

    @property
    def bytes_in_flight(self) -> int:
        """Of loads, per multiprocessor, when every warp waits for those of one turn."""
        elements = self.pack * self.turns
        return self.resident_warps * 32 * elements * sum(self.element_bits[0]) // 8

    def accesses(self, operation: str, kind: str = "") -> Counter[int]:
        """LDG or STG whose suffixes contain ``kind``, by bits."""
        found: Counter[int] = Counter()
        for suffixes in re.findall(rf"\b{operation}((?:\.\w+)+)", self.sass):
            parts = suffixes.split(".")
            if not kind or kind in parts:
                widths = [int(p.strip("US")) for p in parts if p.strip("US").isdigit()]
                found[widths[0] if widths else 32] += 1
        return found


def cuobjdump() -> Path | None:
    """The one of Triton's package, else of a CUDA toolkit on PATH."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        own = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if own.exists():
            return own
    on_path = shutil.which("cuobjdump")
    return Path(on_path) if on_path else None


def dump(*options: str) -> str:
    """What cuobjdump says of the extension."""
    tool = cuobjdump()
    assert tool is not None
    command = [str(tool), *options, str(_C.__file__)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@cache
def kernels(arch: str, *, with_sass: bool = False) -> dict[str, Kernel]:
    """Kernels for ``arch`` ("sm_90") by their labels."""
    sass: dict[str, str] = {}
    if with_sass:
        pieces = re.split(r"Function : (\S+)", dump("-sass", "-arch", arch))
        sass = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    listing = dump("--dump-resource-usage", "-arch", arch)
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    rows = re.findall(pattern, listing)
    names = subprocess.run(
        ["c++filt", *(row[0] for row in rows)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    made = {}
    for full_name, (mangled, registers, stack, local) in zip(names, rows, strict=True):
        name, arguments = _short(full_name)
        kernel = Kernel(
            name, arguments, int(registers), int(stack), int(local), sass.get(mangled, "")
        )
        made[kernel.label] = kernel
    return made


def architectures() -> set[str]:
    """Those with machine code in the extension."""
    return set(re.findall(r"\.(sm_\d+)\.cubin", dump("-lelf")))


def _short(full_name: str) -> tuple[str, tuple[str, ...]]:
    """``void sfplus::cuda::update_kernel<(...)0, float, ...>(...)`` -> update adam, (fp32, ...)."""
    match = re.search(r"::(\w+)_kernel(?:<(.*?)>)?\(", full_name)
    assert match is not None, full_name
    name = match[1]
    parts = [part.split("::")[-1].split(")")[-1] for part in (match[2] or "").split(", ") if part]
    types = [TYPES[part] for part in parts if part in TYPES]
    if name == "reduce":  # <with_e, State, Grad>
        return name if parts[0] in ("true", "1") else "reduce g only", tuple(types)
    if name == "update":  # <direction, State, Param, Grad>
        return f"update {DIRECTIONS[int(parts[0])]}", tuple(types[1:])
    if name == "interpolate":  # <move, State, Param>
        return name, (types[1], MOVES[int(parts[0])])
    return name, ()


def main() -> None:
    """Print registers and occupancy on sm_90."""
    print("| kernel | registers | warps per SM | loads in flight per SM |")
    print("|---|---|---|---|")
    for kernel in sorted(kernels("sm_90").values(), key=lambda k: k.label):
        if kernel.is_memory_pass:
            flight = f"{kernel.bytes_in_flight / 1000:.0f} kB"
            print(f"| {kernel.label} | {kernel.registers} | {kernel.resident_warps} | {flight} |")


if __name__ == "__main__":
    main()
