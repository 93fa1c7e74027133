"""What the compiler made of the CUDA kernels, read from the built extension: no GPU, no compiler is needed.

``python tests/backends/cuda_binary.py`` prints the table of docs/performance.md.
"""

from __future__ import annotations

import atexit
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import sfplus_kernels._C as _C
from sfplus_kernels.backends.machine_code import unpacked

THREADS = 128
"""Of a block, as ``kThreads`` in csrc/cuda/threads.h."""

TURNS = {"reduce": 2, "reduce g only": 4, "interpolate": 2, "update sgd": 2, "step sgd": 2}
TURNS |= {"update plain sgd": 2, "update plain momentum": 2}
"""Packs of each tensor under way in a thread, where it is not one."""

BITS = {"fp64": 64, "fp32": 32, "bf16": 16, "fp16": 16}
TYPES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


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
    def is_half(self) -> bool:
        """Over state of 16 bits, or of 8."""
        return "half" in self.name.split() or self.is_quarter

    @property
    def is_quarter(self) -> bool:
        """Over state of 8 bits."""
        return "quarter" in self.name.split()

    @property
    def has_exponents(self) -> bool:
        return self.is_quarter and self.is_update and not self.name.endswith("sgd")

    @property
    def is_update(self) -> bool:
        return self.name.startswith(("update", "step"))

    @property
    def is_watched(self) -> bool:
        """Whether it forms the sums of a drift monitor too, where there is one."""
        return self.name.startswith("update")

    @property
    def keeps_sums_in_memory(self) -> bool:
        """Those of a drift monitor: see csrc/cuda/update.cuh."""
        large = self.arguments[:1] in (("fp64",), ("fp32",)) and not self.is_half
        return self.is_watched and large and self.name.endswith(("adam", "no momentum"))

    @property
    def is_project(self) -> bool:
        return self.name.startswith("project")

    @property
    def sweeps(self) -> int:
        """How often the kernel goes over its tensors: for the norm of a row, then for what is too much."""
        return 2 if self.is_project else 1

    @property
    def label(self) -> str:
        return " ".join((self.name, *self.arguments))

    @property
    def state(self) -> str:
        """dtype of the state: the first of the arguments, as the second follows it."""
        return "fp64" if self.arguments[0] == "fp64" else "fp32"

    @property
    def turns(self) -> int:
        if self.name == "reduce half":
            return 2 if self.arguments[1] == "bf16" else 1
        return TURNS.get(self.name, 1)

    @property
    def resident_warps(self) -> int:
        """Of a multiprocessor with 65536 registers, of which a thread gets eight at a time."""
        per_block = -(-self.registers // 8) * 8 * THREADS
        return min(65536 // per_block * THREADS // 32, 64)

    @property
    def element_bits(self) -> tuple[list[int], list[int]]:
        """Of each tensor that is read, and of each that is written."""
        if self.is_half:
            return self._element_bits_of_half()
        state = BITS[self.state]
        if self.name.startswith("reduce"):
            return ([] if self.name.endswith("only") else [state]) + [BITS[self.arguments[1]]], []
        own = [BITS[self.arguments[0]]] if BITS[self.arguments[0]] < state else []
        if self.is_update:
            counts = {"adam": 4, "no momentum": 3, "sgd": 2}
            counts |= {"plain adam": 3, "plain momentum": 2, "plain sgd": 1}
            n_state = counts[self.name.partition(" ")[2]]
            return [state] * n_state + [BITS[self.arguments[1]], *own], [state] * n_state + own
        if self.is_project:
            y_and_e = [state] * (1 if "plain" in self.name else 2)
            return y_and_e * self.sweeps, y_and_e + own
        writes_e = [state] if self.arguments[1] in ("expose_z", "absorb_z") else []
        return [state] * 2 + own, [state, *writes_e, *own]

    def _element_bits_of_half(self) -> tuple[list[int], list[int]]:
        moment, lower = (8, 8) if self.is_quarter else (16, 16)
        y = [16, lower] if self.arguments[0] == "bf16" else [32]  # in two parts
        if self.name.startswith("reduce"):
            return [16, BITS[self.arguments[1]]], []
        if self.is_update:
            moments = {"adam": 2, "momentum": 1, "sgd": 0}[self.name.split()[-1]]
            e = [] if "plain" in self.name.split() else [16]
            state = [moment] * moments + e + y
            return [*state, BITS[self.arguments[1]]], state
        if self.is_project:
            stored = y if "plain" in self.name else [16, *y]
            return stored * self.sweeps, stored
        if self.arguments == ("bf16", "to_x"):  # the parameter is written only
            return [16, 16, lower], [16]
        kept = [16] if self.arguments == ("bf16", "to_y") else []
        return [16, *y, *kept], y

    @property
    def pack(self) -> int:
        """Elements that a thread accesses at once: 16 bytes of state, else of gradients."""
        if self.is_half:
            return 8
        only = self.name == "reduce g only"
        return 128 // BITS[self.arguments[1] if only else self.state]

    @property
    def bytes_in_flight(self) -> int:
        """Of loads, per multiprocessor, when every warp waits for those of one turn."""
        elements = self.pack * self.turns
        return self.resident_warps * 32 * elements * sum(self.element_bits[0]) // self.sweeps // 8

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


@cache
def image(arch: str) -> Path:
    """The machine code of an architecture, or PTX, as a file of its own."""
    folder = Path(tempfile.mkdtemp(prefix="sfplus-"))
    atexit.register(shutil.rmtree, folder)
    path = folder / f"{arch}.cubin"
    path.write_bytes(unpacked(_C.CUDA_IMAGES[arch]))
    return path


def dump(arch: str, *options: str) -> str:
    """What cuobjdump says of the kernels for an architecture."""
    tool = cuobjdump()
    assert tool is not None
    command = [str(tool), *options, str(image(arch))]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@cache
def kernels(arch: str, *, with_sass: bool = False) -> dict[str, Kernel]:
    """Kernels for ``arch`` ("sm_90") by their labels."""
    sass: dict[str, str] = {}
    if with_sass:
        pieces = re.split(r"Function : (\S+)", dump(arch, "-sass"))
        sass = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    listing = dump(arch, "--dump-resource-usage")
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    made = {}
    for own_name, registers, stack, local in re.findall(pattern, listing):
        name, arguments = _short(own_name)
        kernel = Kernel(
            name, arguments, int(registers), int(stack), int(local), sass.get(own_name, "")
        )
        made[kernel.label] = kernel
    return made


def architectures() -> set[str]:
    """Those with machine code in the extension."""
    return {name for name in _C.CUDA_IMAGES if name.startswith("sm_")}


def _short(own_name: str) -> tuple[str, tuple[str, ...]]:
    """``update_adam_float32_bfloat16`` -> update adam, (fp32, bf16); see csrc/cuda/kernels.h."""
    words = own_name.split("_")
    types = tuple(TYPES[word] for word in words if word in TYPES)
    if words[0] == "interpolate":
        small = words[1] in ("half", "quarter")
        move = "_".join(words[2 if small else 1 : -1])
        return f"interpolate {words[1]}" if small else "interpolate", (types[0], move)
    name = " ".join(word for word in words if word not in TYPES)
    return {"reduce grads": "reduce g only", "finalize tensors": "finalize_tensors"}.get(
        name, name
    ), types


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
