"""The compiled C++ kernels over the address table: CPU tensors, on torch's number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from sfplus_kernels.contract.layout import Move

CHUNK_SIZE = 16384
"""Elements: as long as a chunk's five buffers stay within a core's cache, and not so short that the
hardware's prefetching starts anew too often."""


@dataclass
class CpuPlan:
    """The address table, and for each of its launches the same as the extension wants it."""

    table: AddressTable
    launches: list[tuple[_C.Table, Launch]]
    partials: list[int]  # where those of each launch begin
    # the run state, and as the extension wants it
    native_run: tuple[RunState, _C.Run] | None = None


class CpuBackend:
    """See ``contract.backend``."""

    def plan(
        self, entries: Sequence[Entry], device: torch.device, *, watched: bool = False
    ) -> CpuPlan:
        table = build_table(entries, device, CHUNK_SIZE, watched=watched)
        launches = [(_native(table, launch), launch) for launch in table.launches]
        return CpuPlan(
            table, launches, [table.partials[x.first_partial].data_ptr() for x in table.launches]
        )

    def set_gradients(
        self, plan: CpuPlan, gradients: Sequence[Tensor], *, moved: bool = True
    ) -> None:
        bring_gradients(plan.table, gradients, moved=moved)

    def steps_at_once(self, plan: CpuPlan) -> bool:
        return False

    def step(
        self, plan: CpuPlan, run: RunState, *, sums: bool, with_e: bool, loss: Tensor | None
    ) -> None:
        raise NotImplementedError("steps_at_once says that there is none")

    def reduce(self, plan: CpuPlan, *, with_e: bool) -> Tensor:
        for (native, launch), partials in zip(plan.launches, plan.partials, strict=True):
            _C.reduce(
                native,
                launch.format,
                DTYPES[launch.param_dtype],
                _grad_dtype(launch),
                with_e,
                partials,
                launch.n_partials,
                torch.get_num_threads(),
            )
        _weigh_partials(plan.table)
        return plan.table.partials

    def finalize(self, plan: CpuPlan, run: RunState, partials: Tensor | None) -> None:
        table = plan.table
        _C.finalize(
            0 if partials is None else partials.data_ptr(),
            0 if partials is None else partials.shape[0],
            table.rows.data_ptr(),
            table.n_rows,
            _native_run(plan, run),
            MAX_COEFFICIENT,
        )

    def update(self, plan: CpuPlan, run: RunState) -> None:
        load_param_stages(plan.table)
        native_run = _native_run(plan, run)
        for native, launch in plan.launches:
            _C.update(
                native,
                launch.format,
                DTYPES[launch.param_dtype],
                _grad_dtype(launch),
                native_run,
                torch.get_num_threads(),
            )
        store_param_stages(plan.table)

    def drift(self, plan: CpuPlan) -> Tensor:
        return drift_of_entries(plan.table.drift)

    def interpolate(self, plan: CpuPlan, run: RunState, move: Move) -> None:
        load_param_stages(plan.table)
        native_run = _native_run(plan, run)
        for native, launch in plan.launches:
            _C.interpolate(
                native,
                launch.format,
                DTYPES[launch.param_dtype],
                native_run,
                move,
                torch.get_num_threads(),
            )
        store_param_stages(plan.table)


def _native(table: AddressTable, launch: Launch) -> _C.Table:
    watched = {} if table.drift is None else {"drift": table.drift.address(launch.first_chunk)}
    return _C.Table(
        rows=table.rows.data_ptr(),
        gradients=table.gradients.data_ptr(),
        chunks=table.chunks[launch.first_chunk].data_ptr(),
        n_chunks=launch.n_chunks,
        chunk_size=0 if launch.projects else CHUNK_SIZE,
        n_elements=launch.n_elements,
        **watched,
    )


def _native_run(plan: CpuPlan, run: RunState) -> _C.Run:
    if plan.native_run is None or plan.native_run[0] is not run:
        plan.native_run = (run, _C.Run(**run.addresses()))
    return plan.native_run[1]


def _grad_dtype(launch: Launch) -> int:
    assert launch.grad_dtype is not None, "a plan without gradients is for interpolate only"
    return DTYPES[launch.grad_dtype]


def _weigh_partials(table: AddressTable) -> None:
    """Multiply the sums of each launch with its number of shards."""
    for launch in table.launches:
        if launch.shards != 1:
            table.partials.narrow(0, launch.first_partial, launch.n_partials).mul_(launch.shards)
