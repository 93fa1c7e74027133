"""The compiled CUDA kernels over the address table: tensors on an NVIDIA GPU, on torch's current stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.backends.drift import drift_of_entries
from sfplus_kernels.backends.gradient_addresses import bring_gradients
from sfplus_kernels.backends.native import _C, DTYPES
from sfplus_kernels.backends.table import (
    AddressTable,
    Launch,
    build_table,
    load_param_stages,
    store_param_stages,
)
from sfplus_kernels.contract.backend import MAX_COEFFICIENT, Entry, RunState
from sfplus_kernels.contract.formats import FLOAT_DTYPES
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS, Format, Move

WARPS_PER_BLOCK = 4
"""As ``kWarps`` in csrc/cuda/walk.cuh."""


def gradients_of(entry: Entry) -> Sequence[torch.dtype]:
    """Of which dtypes its gradient may be, as csrc/cuda/kernels.h has it: ``half_type``, ``usual_pair``."""
    if entry.format != Format.FULL:
        return (torch.float32, torch.bfloat16)
    if entry.displacement is not None:
        return FLOAT_DTYPES
    if entry.param.dtype == torch.float64:
        return (torch.float64,)
    small = torch.float16 if entry.param.dtype == torch.float16 else torch.bfloat16
    return (torch.float32, small)


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
        self._no_run = native.Run(0, 0, 0, 0, 0, 0, 0, 0)  # for reduce alone

    def plan(
        self,
        entries: Sequence[Entry],
        device: torch.device,
        chunk_size: int | None = None,
        *,
        watched: bool = False,
    ) -> CudaPlan:
        size = chunk_size or choose_chunk_size(sum(e.param.numel() for e in entries))
        plan = CudaPlan(build_table(entries, device, size, gradients_of, watched=watched), size, [])
        self._name_launches(plan)
        return plan

    def set_gradients(
        self, plan: CudaPlan, gradients: Sequence[Tensor], *, moved: bool = True
    ) -> None:
        bring_gradients(plan.table, gradients, moved=moved)
        if moved:
            self._name_launches(plan)

    def steps_at_once(self, plan: CudaPlan) -> bool:
        return bool(plan.launches)  # a kernel to finish the step in

    def step(
        self, plan: CudaPlan, run: RunState, *, sums: bool, with_e: bool, loss: Tensor | None
    ) -> None:
        load_param_stages(plan.table)
        queue = _queue(plan)
        coefficients = self._finish(
            plan, run, plan.table.partials if sums else None, loss, finishes=True
        )
        given = self._finish(plan, run, None, None)
        if sums:
            self._reduce(plan, with_e, [given] * (len(plan.launches) - 1) + [coefficients], queue)
        self._update(
            plan, [given if sums else coefficients] + [given] * (len(plan.launches) - 1), queue
        )
        store_param_stages(plan.table)

    def reduce(self, plan: CudaPlan, *, with_e: bool) -> Tensor:
        given = self._finish(plan, None, None, None)
        self._reduce(plan, with_e, [given] * len(plan.launches), _queue(plan))
        return plan.table.partials

    def finalize(self, plan: CudaPlan, run: RunState, partials: Tensor | None) -> None:
        self._native.cuda_finalize(self._finish(plan, run, partials, None), *_queue(plan))

    def update(self, plan: CudaPlan, run: RunState) -> None:
        load_param_stages(plan.table)
        given = self._finish(plan, run, None, None)
        self._update(plan, [given] * len(plan.launches), _queue(plan))
        store_param_stages(plan.table)

    def _reduce(
        self, plan: CudaPlan, with_e: bool, finishes: Sequence[Any], queue: tuple[int, int]
    ) -> None:
        first = plan.table.partials.data_ptr()
        row_bytes = plan.table.partials.stride(0) * plan.table.partials.element_size()
        for (native, launch), finish in zip(plan.launches, finishes, strict=True):
            self._native.cuda_reduce(
                native,
                launch.format,
                DTYPES[launch.param_dtype],
                _grad_dtype(launch),
                with_e,
                first + launch.first_partial * row_bytes,
                launch.n_partials,
                launch.shards,
                finish,
                *queue,
            )

    def _update(self, plan: CudaPlan, finishes: Sequence[Any], queue: tuple[int, int]) -> None:
        for (native, launch), finish in zip(plan.launches, finishes, strict=True):
            self._native.cuda_update(
                native,
                launch.format,
                DTYPES[launch.param_dtype],
                _grad_dtype(launch),
                launch.has_exp_avg,
                launch.has_exp_avg_sq,
                launch.has_displacement,
                finish,
                *queue,
            )

    def _finish(
        self,
        plan: CudaPlan,
        run: RunState | None,
        partials: Tensor | None,
        loss: Tensor | None,
        *,
        finishes: bool = False,
    ) -> Any:
        """What a kernel is told of the rest of the step: ``finishes`` if it is to form the coefficients."""
        return self._native.Finish(
            partials=0 if partials is None else partials.data_ptr(),
            n_partials=0 if partials is None else partials.shape[0],
            rows=plan.table.rows.data_ptr(),
            n_rows=plan.table.n_rows,
            run=self._no_run if run is None else self._native_run(plan, run),
            loss=0 if loss is None else loss.data_ptr(),
            loss_dtype=0 if loss is None else DTYPES[loss.dtype],
            max_coefficient=MAX_COEFFICIENT,
            tickets=plan.table.tickets.data_ptr() if finishes else 0,
        )

    def drift(self, plan: CudaPlan) -> Tensor:
        return drift_of_entries(plan.table.drift)

    def interpolate(self, plan: CudaPlan, run: RunState, move: Move) -> None:
        load_param_stages(plan.table)
        native_run, (device, stream) = self._native_run(plan, run), _queue(plan)
        for native, launch in plan.launches:
            self._native.cuda_interpolate(
                native,
                launch.format,
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
                    chunk_size=0 if launch.projects else plan.chunk_size,  # each is a row
                    n_elements=launch.n_elements,
                    drift=0 if table.drift is None else table.drift.address(launch.first_chunk),
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
    return device.index or 0, plan.table.use.note()


def _grad_dtype(launch: Launch) -> int:
    assert launch.grad_dtype is not None, "a plan without gradients is for interpolate only"
    return DTYPES[launch.grad_dtype]
