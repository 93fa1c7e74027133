"""Triton kernels over the address table: CUDA tensors, or CPU tensors in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sfplus_kernels.backends.table import (
    AddressTable,
    Launch,
    bring_gradients,
    build_table,
    load_param_stages,
    store_param_stages,
    weigh_partials,
)
from sfplus_kernels.backends.triton.finalize import finalize_kernel, finalize_tensors_kernel
from sfplus_kernels.backends.triton.interpolate import interpolate_kernel
from sfplus_kernels.backends.triton.reduce import reduce_kernel
from sfplus_kernels.backends.triton.update import update_kernel
from sfplus_kernels.contract import layout
from sfplus_kernels.contract.backend import MAX_COEFFICIENT, Entry, RunState
from sfplus_kernels.contract.formats import state_dtype

INTERPRETED = not isinstance(update_kernel, triton.JITFunction)
"""Whether the kernels run in the interpreter: decided by TRITON_INTERPRET when they are imported."""

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
    layout.Move,
    layout.Hyper,
    layout.Setting,
    layout.Global,
    layout.Group,
    layout.Scalar,
    layout.GroupCoef,
    layout.TensorCoef,
    layout.Sum,
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
    them: reduce and interpolate, which have fewer tensors, take two vectors of each.
    """
    vector = 16 // state.itemsize
    if interpreted:  # a loop turn costs milliseconds whatever its size
        return LaunchConfig(chunk_size(True), 4096, vector, 4)
    vectors, num_warps = {"reduce": (2, 4), "update": (1, 8), "interpolate": (2, 4)}[pass_name]
    return LaunchConfig(chunk_size(False), vector * vectors * 32 * num_warps, vector, num_warps)


# finalize is one program whose time is the latency of its loads: many lanes, few turns
FINALIZE = {"GROUP_BLOCK": 256, "BLOCK_SIZE": 1024, "num_warps": 8, **ARITHMETIC}
FINALIZE_TENSORS = {"BLOCK_SIZE": 128, "num_warps": 4, **ARITHMETIC}


class TritonBackend:
    """See ``contract.backend``."""

    def plan(self, entries: Sequence[Entry], device: torch.device) -> AddressTable:
        if (device.type == "cpu") != INTERPRETED:
            raise RuntimeError(
                f"the Triton kernels cannot work on {device}: they were imported "
                + (
                    "with TRITON_INTERPRET=1, and the interpreter follows addresses in host memory "
                    "only; unset it"
                    if INTERPRETED
                    else "without TRITON_INTERPRET=1, which CPU tensors need; set it before Python starts"
                )
            )
        return build_table(entries, device, chunk_size(INTERPRETED))

    def set_gradients(
        self, plan: AddressTable, gradients: Sequence[Tensor], *, moved: bool = True
    ) -> None:
        bring_gradients(plan, gradients, moved=moved)

    def steps_at_once(self, plan: AddressTable) -> bool:
        return False

    def step(
        self, plan: AddressTable, run: RunState, *, sums: bool, with_e: bool, loss: Tensor | None
    ) -> None:
        raise NotImplementedError("steps_at_once says that there is none")

    def reduce(self, plan: AddressTable, *, with_e: bool) -> Tensor:
        with _launching(plan):
            for launch in plan.launches:
                _grid(reduce_kernel, launch.n_partials)(
                    plan.rows,
                    plan.gradients,
                    plan.chunks,
                    plan.partials,
                    launch.first_chunk,
                    launch.n_chunks,
                    launch.first_partial,
                    launch.n_partials,
                    COLUMNS=COLUMNS,
                    WITH_E=with_e,
                    STATE_DTYPE=TRITON_DTYPES[state_dtype(launch.param_dtype)],
                    GRAD_DTYPE=_grad_dtype(launch),
                    **_config("reduce", launch).arguments(),
                )
        weigh_partials(plan)
        return plan.partials

    def finalize(self, plan: AddressTable, run: RunState, partials: Tensor | None) -> None:
        with _launching(plan):
            _grid(finalize_kernel, 1)(
                plan.partials if partials is None else partials,
                run.globals,
                run.groups,
                run.hyper,
                run.settings,
                run.group_coefs,
                0 if partials is None else len(partials),
                len(run.groups),
                COLUMNS=COLUMNS,
                MAX_COEFFICIENT=MAX_COEFFICIENT,
                **FINALIZE,
            )
            if plan.n_rows > 0:
                n_programs = triton.cdiv(plan.n_rows, FINALIZE_TENSORS["BLOCK_SIZE"])
                _grid(finalize_tensors_kernel, n_programs)(
                    plan.rows,
                    run.globals,
                    run.groups,
                    run.hyper,
                    run.settings,
                    run.tensors,
                    run.tensor_coefs,
                    plan.n_rows,
                    COLUMNS=COLUMNS,
                    **FINALIZE_TENSORS,
                )

    def update(self, plan: AddressTable, run: RunState) -> None:
        load_param_stages(plan)
        with _launching(plan):
            for launch in plan.launches:
                _grid(update_kernel, launch.n_chunks)(
                    plan.rows,
                    plan.gradients,
                    plan.chunks,
                    run.globals,
                    run.group_coefs,
                    run.tensor_coefs,
                    launch.first_chunk,
                    COLUMNS=COLUMNS,
                    PARAM_DTYPE=TRITON_DTYPES[launch.param_dtype],
                    STATE_DTYPE=TRITON_DTYPES[state_dtype(launch.param_dtype)],
                    GRAD_DTYPE=_grad_dtype(launch),
                    HAS_EXP_AVG=launch.has_exp_avg,
                    HAS_EXP_AVG_SQ=launch.has_exp_avg_sq,
                    **_config("update", launch).arguments(),
                )
        store_param_stages(plan)

    def interpolate(self, plan: AddressTable, run: RunState, move: layout.Move) -> None:
        load_param_stages(plan)
        with _launching(plan):
            for launch in plan.launches:
                _grid(interpolate_kernel, launch.n_chunks)(
                    plan.rows,
                    plan.chunks,
                    run.globals,
                    run.hyper,
                    run.group_coefs,
                    run.tensors,
                    run.tensor_coefs,
                    launch.first_chunk,
                    COLUMNS=COLUMNS,
                    MOVE=int(move),
                    PARAM_DTYPE=TRITON_DTYPES[launch.param_dtype],
                    STATE_DTYPE=TRITON_DTYPES[state_dtype(launch.param_dtype)],
                    **{**_config("interpolate", launch).arguments(), **OF_A_MOVE},
                )
        store_param_stages(plan)


def _config(pass_name: str, launch: Launch) -> LaunchConfig:
    return launch_config(pass_name, state_dtype(launch.param_dtype), INTERPRETED)


def _grad_dtype(launch: Launch) -> tl.dtype:
    assert launch.grad_dtype is not None, "a plan without gradients is for interpolate only"
    return TRITON_DTYPES[launch.grad_dtype]


def _grid(kernel: Any, n_programs: int) -> Callable[..., None]:
    launcher: Callable[..., None] = kernel[(n_programs,)]
    return launcher


@contextmanager
def _launching(plan: AddressTable) -> Iterator[None]:
    """Triton launches on the current device and its current stream, whatever the arguments are."""
    device = plan.rows.device
    if device.type == "cpu":
        import numpy  # the interpreter's arithmetic, which warns where a GPU does not

        with numpy.errstate(all="ignore"):
            yield
        return
    with torch.xpu.device(device) if device.type == "xpu" else torch.cuda.device(device):
        plan.use.note()
        yield
