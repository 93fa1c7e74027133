"""Triton kernels over the address table: CUDA tensors, or CPU tensors in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sfplus_kernels.backends.drift import drift_of_entries
from sfplus_kernels.backends.gradient_addresses import bring_gradients
from sfplus_kernels.backends.table import (
    AddressTable,
    Launch,
    build_table,
    load_param_stages,
    store_param_stages,
)
from sfplus_kernels.backends.triton.finish import finalize_kernel, finalize_tensors_kernel
from sfplus_kernels.backends.triton.interpolate import interpolate_kernel
from sfplus_kernels.backends.triton.launches import (
    COLUMNS,
    FINALIZE,
    FINALIZE_TENSORS,
    FINISH,
    MANY_PROGRAMS,
    MANY_TENSORS,
    OF_A_MOVE,
    REGISTERS,
    TRITON_DTYPES,
    LaunchConfig,
    chunk_size,
    launch_config,
)
from sfplus_kernels.backends.triton.reduce import reduce_kernel
from sfplus_kernels.backends.triton.update import update_kernel
from sfplus_kernels.contract import layout
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.formats import state_dtype

INTERPRETED = not isinstance(update_kernel, triton.JITFunction)
"""Whether the kernels run in the interpreter: decided by TRITON_INTERPRET when they are imported."""

NO_FINISH: dict[str, Any] = {
    "loss_ptr": None,
    "globals_ptr": None,
    "groups_ptr": None,
    "hyper_ptr": None,
    "settings_ptr": None,
    "tensors_ptr": None,
    "group_coefs_ptr": None,
    "tensor_coefs_ptr": None,
    "tickets_ptr": None,
    "n_groups": 0,
    "n_rows": 0,
}
"""For a kernel that does not finish the step."""


class TritonBackend:
    """See ``contract.backend``."""

    def plan(
        self, entries: Sequence[Entry], device: torch.device, *, watched: bool = False
    ) -> AddressTable:
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
        return build_table(entries, device, chunk_size(INTERPRETED), watched=watched)

    def set_gradients(
        self, plan: AddressTable, gradients: Sequence[Tensor], *, moved: bool = True
    ) -> None:
        bring_gradients(plan, gradients, moved=moved)

    def steps_at_once(self, plan: AddressTable) -> bool:
        return bool(plan.launches)  # a kernel to finish the step in

    def step(
        self, plan: AddressTable, run: RunState, *, sums: bool, with_e: bool, loss: Tensor | None
    ) -> None:
        load_param_stages(plan)
        finish = _finish(plan, run, loss)
        few_programs = plan.launches[0].n_chunks <= MANY_PROGRAMS
        with _launching(plan):
            if sums:
                self._reduce(plan, with_e, {**finish, "tickets_ptr": plan.tickets})
                self._finalize_many_tensors(plan, run)
                self._update(plan, run, NO_FINISH)
            elif few_programs and plan.n_rows <= MANY_TENSORS:
                self._update(plan, run, {**finish, "tickets_ptr": plan.tickets})
            else:
                self._finalize(plan, run, None, finish)
                self._update(plan, run, NO_FINISH)
        store_param_stages(plan)

    def reduce(self, plan: AddressTable, *, with_e: bool) -> Tensor:
        with _launching(plan):
            self._reduce(plan, with_e, NO_FINISH)
        return plan.partials

    def finalize(self, plan: AddressTable, run: RunState, partials: Tensor | None) -> None:
        with _launching(plan):
            self._finalize(plan, run, partials, _finish(plan, run, None))

    def update(self, plan: AddressTable, run: RunState) -> None:
        load_param_stages(plan)
        with _launching(plan):
            self._update(plan, run, NO_FINISH)
        store_param_stages(plan)

    def _reduce(self, plan: AddressTable, with_e: bool, finish: dict[str, Any]) -> None:
        for launch in plan.launches:
            last = launch is plan.launches[-1]
            _grid(reduce_kernel, launch.n_partials)(
                plan.rows,
                plan.gradients,
                plan.chunks,
                plan.partials,
                launch.first_chunk,
                launch.n_chunks,
                launch.first_partial,
                launch.n_partials,
                launch.shards,
                **(finish if last else NO_FINISH),
                **FINISH,
                **_few_registers(plan, last and finish is not NO_FINISH),
                WITH_E=with_e,
                STATE_DTYPE=TRITON_DTYPES[state_dtype(launch.param_dtype)],
                E_DTYPE=_e_dtype(launch),
                GRAD_DTYPE=_grad_dtype(launch),
                **_config("reduce", launch).arguments(),
            )

    def _finalize(
        self, plan: AddressTable, run: RunState, partials: Tensor | None, finish: dict[str, Any]
    ) -> None:
        n_partials = 0 if partials is None else len(partials)
        _grid(finalize_kernel, 1)(partials, plan.rows, n_partials, **finish, **FINALIZE)
        self._finalize_many_tensors(plan, run)

    def _finalize_many_tensors(self, plan: AddressTable, run: RunState) -> None:
        if plan.n_rows <= MANY_TENSORS:
            return
        _grid(finalize_tensors_kernel, triton.cdiv(plan.n_rows, FINALIZE_TENSORS["LANES"]))(
            plan.rows,
            run.globals,
            run.groups,
            run.hyper,
            run.settings,
            run.tensors,
            run.tensor_coefs,
            plan.n_rows,
            **FINALIZE_TENSORS,
        )

    def _update(self, plan: AddressTable, run: RunState, finish: dict[str, Any]) -> None:
        for launch in plan.launches:
            first, full = launch is plan.launches[0], launch.format == layout.Format.FULL
            quarter = launch.format == layout.Format.QUARTER  # which needs its registers all along
            _grid(update_kernel, launch.n_chunks)(
                plan.rows,
                plan.gradients,
                plan.chunks,
                launch.first_chunk,
                **{
                    **(finish if first else NO_FINISH),
                    "globals_ptr": run.globals,
                    "group_coefs_ptr": run.group_coefs,
                    "tensor_coefs_ptr": run.tensor_coefs,
                    **({} if full else {"settings_ptr": run.settings, "tensors_ptr": run.tensors}),
                    **(
                        {"groups_ptr": run.groups, "hyper_ptr": run.hyper}
                        if launch.projects
                        else {}
                    ),
                },
                drift_ptr=None if plan.drift is None else plan.drift.slots,
                **FINISH,
                **_few_registers(plan, first and finish is not NO_FINISH and not quarter),
                PARAM_DTYPE=TRITON_DTYPES[launch.param_dtype],
                STATE_DTYPE=TRITON_DTYPES[state_dtype(launch.param_dtype)],
                GRAD_DTYPE=_grad_dtype(launch),
                HAS_EXP_AVG=launch.has_exp_avg,
                HAS_EXP_AVG_SQ=launch.has_exp_avg_sq,
                HAS_DISPLACEMENT=launch.has_displacement,
                FORMAT=int(launch.format),
                **_config("update", launch).arguments(),
            )

    def drift(self, plan: AddressTable) -> Tensor:
        return drift_of_entries(plan.drift)

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
                    FORMAT=_format_of_move(launch),
                    **{**_config("interpolate", launch).arguments(), **OF_A_MOVE},
                )
        store_param_stages(plan)


def _finish(plan: AddressTable, run: RunState, loss: Tensor | None) -> dict[str, Any]:
    """What a kernel is told that finishes the step; one inside of another pass has tickets too."""
    return {
        "loss_ptr": loss,
        "globals_ptr": run.globals,
        "groups_ptr": run.groups,
        "hyper_ptr": run.hyper,
        "settings_ptr": run.settings,
        "tensors_ptr": run.tensors,
        "group_coefs_ptr": run.group_coefs,
        "tensor_coefs_ptr": run.tensor_coefs,
        "n_groups": len(run.groups),
        "n_rows": plan.n_rows if plan.n_rows <= MANY_TENSORS else 0,
    }


def _few_registers(plan: AddressTable, finishes: bool) -> dict[str, int]:
    nvidia = plan.rows.device.type != "xpu" and torch.version.hip is None and not INTERPRETED
    return {"maxnreg": REGISTERS} if finishes and nvidia else {}


def _config(pass_name: str, launch: Launch) -> LaunchConfig:
    widest = state_dtype(launch.param_dtype)
    if launch.format != layout.Format.FULL:  # of what is written: y too, where it is in one piece
        widest = torch.float16 if pass_name == "reduce" else launch.param_dtype
    config = launch_config(pass_name, widest, INTERPRETED)
    return replace(config, chunk_size=0) if launch.projects else config  # a chunk is a row


def _e_dtype(launch: Launch) -> tl.dtype:
    full = launch.format == layout.Format.FULL
    return TRITON_DTYPES[state_dtype(launch.param_dtype)] if full else tl.float16


def _format_of_move(launch: Launch) -> int:
    """y of float32 parameters is moved by an e of 16 bits, whatever the moments are."""
    whole = launch.param_dtype == torch.float32 and launch.format != layout.Format.FULL
    return int(layout.Format.HALF if whole else launch.format)


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
