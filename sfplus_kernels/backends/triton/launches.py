"""How the Triton kernels are launched: what is compiled in, and how much a program and a thread do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl

from sfplus_kernels.contract import layout
from sfplus_kernels.contract.backend import MAX_COEFFICIENT

TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class Columns:
    """The enums of ``layout`` as one compile-time constant of the kernels.

    Its repr is part of Triton's cache key, so kernels compiled for another layout are not reused.
    Global constants would enter the key too, but each of them costs host time at every launch.
    """

    def __init__(self, *enums: type[IntEnum]) -> None:
        for enum in enums:
            columns = {column.name: int(column) for column in enum}
            setattr(self, enum.__name__, SimpleNamespace(**columns, WIDTH=len(enum)))
        self._text = f"Columns({vars(self)})"  # once: some releases ask for it at every launch

    def __repr__(self) -> str:
        return self._text


COLUMNS = Columns(
    layout.Rule,
    layout.Format,
    layout.Move,
    layout.Hyper,
    layout.Setting,
    layout.Global,
    layout.Group,
    layout.Scalar,
    layout.GroupCoef,
    layout.TensorCoef,
    layout.Sum,
    layout.Drift,
    layout.Row,
    layout.Chunk,
)


# a * b + c is rounded once. Said explicitly: Triton 3.9 warns where it is not, 3.10 stops doing it
ARITHMETIC = {"enable_fp_fusion": True}
# but what eval() makes of y and e is what plain torch operations make of them, to the bit
OF_A_MOVE = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class LaunchConfig:
    """Shape of a launch: elements per program, per loop turn and per access, and warps."""

    chunk_size: int
    block_size: int
    vector: int
    num_warps: int

    def arguments(self) -> dict[str, int]:
        """As keyword arguments of a kernel."""
        return {
            "VECTOR": self.vector,
            "CHUNK_SIZE": self.chunk_size,
            "BLOCK_SIZE": self.block_size,
            "num_warps": self.num_warps,
            **ARITHMETIC,
        }


def chunk_size(interpreted: bool) -> int:
    """Elements of one piece of the chunk table."""
    return 16384 if interpreted else 8192


def launch_config(pass_name: str, state: torch.dtype, interpreted: bool) -> LaunchConfig:
    """How ``pass_name`` (reduce, update or interpolate) is launched for a state dtype.

    A thread accesses 16 bytes of state at a time; beside it, gradients and parameters of another
    width are accessed in the same number of elements, else Triton would exchange them between
    threads through shared memory. Each pass makes two to five such loads before it needs one of
    them: reduce and interpolate, which have fewer tensors, take two vectors of each. Of 16-bit state, where
    a vector has twice as many elements, one is enough.
    """
    vector = 16 // state.itemsize
    if interpreted:  # a loop turn costs milliseconds whatever its size
        return LaunchConfig(chunk_size(True), 4096, vector, 4)
    vectors, num_warps = {"reduce": (2, 4), "update": (1, 8), "interpolate": (2, 4)}[pass_name]
    vectors = 1 if state.itemsize == 2 else vectors
    return LaunchConfig(chunk_size(False), vector * vectors * 32 * num_warps, vector, num_warps)


# who finishes a step is one program of four warps, wherever it does it: sums are added up in one order
FINISH: dict[str, Any] = {
    "COLUMNS": COLUMNS,
    "MAX_COEFFICIENT": MAX_COEFFICIENT,
    "SUM_BLOCK": 512,
    "LANES": 128,
}
FINALIZE = {**FINISH, "num_warps": 4, **ARITHMETIC}
FINALIZE_TENSORS = {"COLUMNS": COLUMNS, "LANES": 128, "num_warps": 4, **ARITHMETIC}
REGISTERS = 80
"""Of a thread, in a pass that finishes the step too: what that takes for a moment is not to keep programs of
the pass waiting. Some of it goes to local memory then. Only NVIDIA's compiler takes the hint."""

MANY_TENSORS = 1024
"""One program advances the scalars of so many, in turns; those of more are left to another kernel."""
MANY_PROGRAMS = 4096
"""So many may wait for the first one of their kernel. Where there are more, another kernel comes first: it
has begun before they all have drawn their tickets."""
