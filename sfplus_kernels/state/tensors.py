"""Per-tensor state: making it, keeping it beside its parameter, handing it to the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.eight_bits import exponents_shape
from sfplus_kernels.contract.formats import (
    ALGORITHM_BUFFERS,
    BUFFERS,
    CODES,
    COMES_AND_GOES,
    EXPONENTS,
    FIELDS,
    LOW,
    STEP,
    asked,
    averages,
    begun_otherwise,
    buffer_dtypes,
    format_of,
    is_half,
    is_quarter,
    nearest,
    rows_are_runs,
    strides_row_by_row,
)
from sfplus_kernels.contract.layout import Format
from sfplus_kernels.processes.sharding import as_part_of, is_dtensor, local, part_of_whole, shards
from sfplus_kernels.state.containers import Containers, TensorState
from sfplus_kernels.state.fitting import check_fits, dtypes_of
from sfplus_kernels.state.moments import goes_in_blocks


def new_state(param: Tensor, names: Sequence[str], state_format: str) -> TensorState:
    """State before the first step: zero moments, x = y = z = the parameter."""
    value = local(param).detach()
    kept = format_of(param.dtype, names, state_format, in_blocks=goes_in_blocks(param))
    state: TensorState = {}
    for name, dtype in buffer_dtypes(param.dtype, names, kept).items():
        buffer = torch.zeros_like(value, dtype=dtype)
        if name == "master_param":
            buffer.copy_(value)
        if name == EXPONENTS:
            buffer = value.new_zeros(exponents_shape(value.shape), dtype=dtype)
            state[name] = as_part_of(buffer, param, exponents_shape(param.shape))
        else:
            state[name] = as_part_of(buffer, param)
    state[STEP] = torch.zeros((), dtype=torch.float64, device=param.device)
    return state


@torch.inference_mode(False)
@torch.no_grad()
def create_missing_state(containers: Containers, gradients: Sequence[Tensor | None]) -> None:
    """New state for each parameter that has a gradient and no state, and the buffers that come later.

    Args:
        gradients: one for each of ``containers.params``.

    Raises:
        RuntimeError: the state that there is has other buffers; nothing has changed.
    """
    missing = []
    for index, slot, param in containers.places():
        buffers, state = containers.buffers[index], containers.own_state(param)
        if gradients[slot] is None:
            continue
        if state is None:
            missing.append((param, buffers, containers.formats[index]))
            continue
        kept = asked(state)
        if begun_otherwise(buffers, kept):
            raise RuntimeError(
                f"the settings of a group now ask for the buffers {buffers}, but the state of parameter "
                f"{slot} has {sorted(state)}; put the settings back, or the state, or let the parameter "
                "begin anew with optimizer.state.pop(param)"
            )
        if not set(buffers).issubset(kept):
            check_fits(slot, param, state, containers.formats[index], (STEP,))
            missing.append((param, buffers, containers.formats[index]))
    for param, buffers, state_format in missing:
        fresh, own = new_state(param, buffers, state_format), containers.state.get(param)
        if own is None:  # not setdefault: a container may do more where something is put into it
            containers.state[param] = fresh
        else:  # where a buffer comes later, steps are counted from there on
            own.update({n: value for n, value in fresh.items() if n == STEP or n not in own})


@torch.inference_mode(False)
@torch.no_grad()
def bring_to_parameters(containers: Containers) -> None:
    """State that was moved or replaced has its parameter's device, its dtype and one layout in memory again.

    Raises:
        RuntimeError, TypeError, ValueError: state that does not fit its parameter; nothing has changed.
    """
    states = [
        (i, slot, p, s)
        for i, slot, p in containers.places()
        if (s := containers.own_state(p)) is not None
    ]
    for group, slot, param, state in states:
        needed = (*(["displacement"] if averages(containers.buffers[group]) else []), STEP)
        check_fits(slot, param, state, containers.formats[group], needed)
    seen: set[int] = set()
    projected = containers.projected
    for group, _, param, state in states:
        state_format = containers.formats[group]
        layout = _layout(state, by_rows=projected[group])
        for name, dtype in dtypes_of(param, state, state_format).items():
            _bring(param, state, name, dtype, None if name == EXPONENTS else layout, seen)


def make_entries(
    containers: Containers,
    params: Iterable[Tensor],
    grad_dtypes: Mapping[int, torch.dtype] | None = None,
) -> list[Entry]:
    """Entries of those ``params`` that have state.

    Args:
        grad_dtypes: dtype of each gradient by the parameter's id, or None where none is read.
    """
    places = {id(param): (index, slot) for index, slot, param in containers.places()}
    projected = containers.projected
    entries = []
    for param in params:
        state = containers.own_state(param)
        if state is None:
            continue
        group_index, slot = places[id(param)]
        resting = COMES_AND_GOES.difference(containers.buffers[group_index])
        kept = [name for name in BUFFERS if name in state and name not in resting]
        buffers = {FIELDS[name]: local(state[name]) for name in kept}
        entry = Entry(
            param=local(param),
            master_param=buffers.get("master_param"),
            group=group_index,
            slot=slot,
            grad_dtype=None if grad_dtypes is None else grad_dtypes[id(param)],
            exp_avg=buffers.get("exp_avg"),
            exp_avg_sq=buffers.get("exp_avg_sq"),
            displacement=buffers.get("displacement"),
            shards=shards(param),
            y_low=buffers.get("y_low"),
            y_high=buffers.get("y_high"),
            exponents=buffers.get("exponents"),
            projected=projected[group_index],
        )
        if entry.format != Format.FULL:
            entry = entry._replace(part=part_of_whole(param, containers.rank))
        entries.append(entry)
    return entries


def elements_by_format(states: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Of those that there are: how many elements are kept in which of ``formats.STATE_FORMATS``."""
    counts: dict[str, int] = {}
    for state in states:
        kept = _one_of(state)
        if kept is not None:
            name = "8bit" if is_quarter(state) else "16bit" if is_half(state) else "float32"
            counts[name] = counts.get(name, 0) + kept.numel()
    return counts


def of_others(param: Tensor, state: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """What others put into the state of a parameter, beside the ``known`` keys; tensors on its device."""
    return {
        name: value.to(param.device) if isinstance(value, Tensor) else value
        for name, value in state.items()
        if name not in known
    }


def _layout(state: TensorState, *, by_rows: bool) -> tuple[int, ...]:
    """The strides of all that has the parameter's shape; codes are kept row by row.

    Args:
        by_rows: whether each row has to lie in one piece.
    """
    kept = _one_of(state)
    if kept is None:
        return ()
    strides = _dense_strides(kept)
    if is_quarter(state) or (by_rows and not rows_are_runs(kept.shape, strides)):
        return strides_row_by_row(kept.shape)
    return strides


def _one_of(state: Mapping[str, Any]) -> Tensor | None:
    """Of the buffers of the parameter's shape the one whose layout the others take, if there is any."""
    names = ("displacement", *ALGORITHM_BUFFERS, *CODES.values(), "master_param", *LOW)
    return next((local(state[name]) for name in names if name in state), None)


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Its strides, if its elements lie side by side in memory; else those of a copy that do."""
    number = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != number:
                return torch.empty_like(tensor).stride()
            number *= size
    return tensor.stride()


def _bring(
    param: Tensor,
    state: TensorState,
    name: str,
    dtype: torch.dtype,
    layout: tuple[int, ...] | None,
    seen: set[int],
) -> None:
    value = local(state[name])
    layout = torch.empty(value.shape, device="meta").stride() if layout is None else layout
    same = (value.device, value.dtype, value.stride()) == (param.device, dtype, layout)
    # two buffers in one piece of memory would be written by two threads at once
    shared = value.numel() > 0 and value.data_ptr() in seen
    if not same or shared or value.is_inference() or value.is_neg():
        fresh = torch.empty_strided(value.shape, layout, dtype=dtype, device=param.device)
        fresh.copy_(value if value.dtype == dtype else nearest(value, dtype))
        shape = exponents_shape(param.shape) if name == EXPONENTS else None
        state[name] = as_part_of(fresh, param, shape) if is_dtensor(state[name]) else fresh
        value = fresh
    seen.add(value.data_ptr())
