"""The compiled CUDA kernels over the address table: tensors on an NVIDIA GPU, on torch's current stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.backends.native import _C, DTYPES
from sfplus_kernels.backends.table import (
    AddressTable,
    Launch,
    bring_gradients,
    build_table,
    load_param_stages,
    store_param_stages,
    weigh_partials,
)
from sfplus_kernels.contract.backend import MAX_COEFFICIENT, Entry, RunState
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS, Move

WARPS_PER_BLOCK = 4
"""As ``kWarps`` in csrc/cuda/walk.cuh."""

SMALLEST_CHUNK, LARGEST_CHUNK = 512, 4096


def choose_chunk_size(n_elements: int) -> int:
    """Elements of one chunk, which one warp works through: a power of two.

    Small enough that every warp of ``reduce`` gets one, so that no part of the GPU waits for the rest; not
    so small that finding a tensor in the tables takes longer than its elements.
    """
    wanted = n_elements // (VIRTUAL_BLOCKS * WARPS_PER_BLOCK)
    size = SMALLEST_CHUNK
    while size < LARGEST_CHUNK and 2 * size <= wanted:
        size *= 2
    return size


@dataclass
class CudaPlan:
    """The address table, and its launches as the extension wants them."""

    table: AddressTable
    chunk_size: int
    launches: list[tuple[Any, Launch]]
    native_run: tuple[RunState, Any] | None = None  # the run state, and as the extension wants it


class CudaBackend:
    """See ``contract.backend``.

    Args:
        native: the module with the kernels.
    """

    def __init__(self, native: Any = _C) -> None:
        self._native = native

    def plan(
        self, entries: Sequence[Entry], device: torch.device, chunk_size: int | None = None
    ) -> CudaPlan:
        size = chunk_size or choose_chunk_size(sum(e.param.numel() for e in entries))
        plan = CudaPlan(build_table(entries, device, size), size, [])
        self._name_launches(plan)
        return plan

    def set_gradients(
        self, plan: CudaPlan, gradients: Sequence[Tensor], *, moved: bool = True
    ) -> None:
        bring_gradients(plan.table, gradients, moved=moved)
        if moved:
            self._name_launches(plan)

    def reduce(self, plan: CudaPlan, *, with_e: bool) -> Tensor:
        device, stream = _queue(plan)
        first = plan.table.partials.data_ptr()
        row_bytes = plan.table.partials.stride(0) * plan.table.partials.element_size()
        for native, launch in plan.launches:
            self._native.cuda_reduce(
                native,
                DTYPES[launch.param_dtype],
                _grad_dtype(launch),
                with_e,
                first + launch.first_partial * row_bytes,
                launch.n_partials,
                device,
                stream,
            )
        weigh_partials(plan.table)
        return plan.table.partials

    def finalize(self, plan: CudaPlan, run: RunState, partials: Tensor | None) -> None:
        table = plan.table
        self._native.cuda_finalize(
            0 if partials is None else partials.data_ptr(),
            0 if partials is None else len(partials),
            table.rows.data_ptr(),
            table.n_rows,
            self._native_run(plan, run),
            MAX_COEFFICIENT,
            *_queue(plan),
        )

    def update(self, plan: CudaPlan, run: RunState) -> None:
        load_param_stages(plan.table)
        native_run, (device, stream) = self._native_run(plan, run), _queue(plan)
        for native, launch in plan.launches:
            self._native.cuda_update(
                native,
                DTYPES[launch.param_dtype],
                _grad_dtype(launch),
                launch.has_exp_avg,
                launch.has_exp_avg_sq,
                native_run,
                device,
                stream,
            )
        store_param_stages(plan.table)

    def interpolate(self, plan: CudaPlan, run: RunState, move: Move) -> None:
        load_param_stages(plan.table)
        native_run, (device, stream) = self._native_run(plan, run), _queue(plan)
        for native, launch in plan.launches:
            self._native.cuda_interpolate(
                native,
                DTYPES[launch.param_dtype],
                native_run,
                move,
                device,
                stream,
            )
        store_param_stages(plan.table)

    def _name_launches(self, plan: CudaPlan) -> None:
        """The launches by the addresses of the tables: anew where the gradients have another table."""
        table = plan.table
        chunks = table.chunks.data_ptr()
        row_bytes = table.chunks.stride(0) * table.chunks.element_size() if table.launches else 0
        plan.launches = [
            (
                self._native.Table(
                    rows=table.rows.data_ptr(),
                    gradients=table.gradients.data_ptr(),
                    chunks=chunks + launch.first_chunk * row_bytes,
                    n_chunks=launch.n_chunks,
                    chunk_size=plan.chunk_size,
                    n_elements=launch.n_elements,
                ),
                launch,
            )
            for launch in table.launches
        ]

    def _native_run(self, plan: CudaPlan, run: RunState) -> Any:
        if plan.native_run is None or plan.native_run[0] is not run:
            plan.native_run = (run, self._native.Run(**run.addresses()))
        return plan.native_run[1]


def _queue(plan: CudaPlan) -> tuple[int, int]:
    """The number of the plan's device, and the address of its current stream."""
    device = plan.table.rows.device
    if device.type != "cuda":  # the kernels' stand-in in the tests
        return 0, 0
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def _grad_dtype(launch: Launch) -> int:
    assert launch.grad_dtype is not None, "a plan without gradients is for interpolate only"
    return DTYPES[launch.grad_dtype]
