"""Per-tensor state: making it, keeping it beside its parameter, handing it to the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.formats import (
    ALGORITHM_BUFFERS,
    BUFFERS,
    SCALARS,
    needs_master,
    state_dtype,
)
from sfplus_kernels.contract.layout import Scalar
from sfplus_kernels.processes.sharding import as_part_of, is_dtensor, local, shards
from sfplus_kernels.state.containers import Containers, TensorState


def new_state(param: Tensor, names: Iterable[str]) -> TensorState:
    """State before the first step: zero moments, x = y = z = the parameter."""
    value, dtype = local(param).detach(), state_dtype(param.dtype)
    buffers = {name: torch.zeros_like(value, dtype=dtype) for name in names}
    if needs_master(param.dtype):
        buffers["master_param"] = torch.empty_like(value, dtype=dtype).copy_(value)
    state = {name: as_part_of(buffer, param) for name, buffer in buffers.items()}
    for name in SCALARS:
        state[name] = torch.zeros((), dtype=torch.float64, device=param.device)
    return state


def create_missing_state(containers: Containers, gradients: Sequence[Tensor | None]) -> None:
    """New state for each parameter that has a gradient and no state.

    Args:
        gradients: one for each of ``containers.params``.

    Raises:
        RuntimeError: the state that there is has other buffers.
    """
    names = [
        buffers
        for group, buffers in zip(containers.groups, containers.buffers, strict=True)
        for _ in group["params"]
    ]
    for param, grad, buffers in zip(containers.params, gradients, names, strict=True):
        if grad is None:
            continue
        state = containers.state.get(param)
        if not state:
            containers.state[param] = new_state(param, buffers)
        elif any((name in state) != (name in buffers) for name in ALGORITHM_BUFFERS):
            raise RuntimeError(
                f"the settings of a group now ask for the buffers {buffers}, but the state of a "
                f"parameter has {sorted(state)}; put the settings back, or make a new optimizer"
            )


def make_entries(
    containers: Containers,
    params: Iterable[Tensor],
    scalars: Tensor,
    grad_dtypes: Mapping[int, torch.dtype] | None = None,
) -> list[tuple[Entry, TensorState]]:
    """Entries of those ``params`` that have state, with that state.

    State follows its parameter to another device; ``step`` and ``y_beta`` become views of ``scalars``
    (``RunState.tensors``), so that one kernel advances them all.

    Args:
        grad_dtypes: dtype of each gradient by the parameter's id, or None where none is read.
    """
    places: dict[int, tuple[int, int]] = {}  # id -> (group, slot)
    for index, group in enumerate(containers.groups):
        for param in group["params"]:
            places[id(param)] = (index, len(places))
    entries = []
    for param in params:
        state = containers.state.get(param)
        if not state:
            continue
        _follow_parameter(param, state)
        group_index, slot = places[id(param)]
        buffers = {name: local(state[name]) for name in BUFFERS if name in state}
        entry = Entry(
            param=local(param),
            master_param=buffers.get("master_param"),
            group=group_index,
            slot=slot,
            grad_dtype=None if grad_dtypes is None else grad_dtypes[id(param)],
            exp_avg=buffers.get("exp_avg"),
            exp_avg_sq=buffers.get("exp_avg_sq"),
            displacement=buffers["displacement"],
            shards=shards(param),
        )
        entries.append((entry, state))
    _adopt_scalars(entries, scalars)
    return entries


def _adopt_scalars(entries: list[tuple[Entry, TensorState]], scalars: Tensor) -> None:
    width = scalars.element_size()
    first = scalars.data_ptr()
    strays = [
        (entry.slot, state)
        for entry, state in entries
        if any(
            state[name].data_ptr() != first + width * (entry.slot * len(Scalar) + column)
            for column, name in enumerate(SCALARS)
        )
    ]
    if not strays:
        return
    columns = [
        torch.stack([state[name].to(scalars.device, scalars.dtype) for _, state in strays])
        for name in SCALARS
    ]
    slots = torch.tensor([slot for slot, _ in strays]).to(scalars.device)
    scalars[slots] = torch.stack(columns, dim=1)
    for slot, state in strays:
        for column, name in enumerate(SCALARS):
            state[name] = scalars[slot, column]


def _follow_parameter(param: Tensor, state: TensorState) -> None:
    names = [name for name in BUFFERS if name in state]
    for name in names:
        if state[name].device != param.device:
            moved = local(state[name]).to(param.device)
            state[name] = as_part_of(moved, param) if is_dtensor(state[name]) else moved
    part = local(param)
    buffers = [local(state[name]) for name in names]
    expected = (state_dtype(param.dtype), part.shape, local(state["displacement"]).stride())
    same = all((b.dtype, b.shape, b.stride()) == expected for b in buffers)
    same = same and all(shards(state[name]) == shards(param) for name in names)
    if not same or needs_master(param.dtype) != ("master_param" in state):
        made_for = {name: (b.dtype, tuple(b.shape)) for name, b in zip(names, buffers, strict=True)}
        raise RuntimeError(
            f"a parameter is now {param.dtype}, of which this process holds shape {tuple(part.shape)}, but "
            f"its state is {made_for}; make a new optimizer after model.to(dtype) or after the model is "
            "divided among processes"
        )
