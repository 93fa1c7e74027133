"""Per-tensor state: making it, keeping it beside its parameter, handing it to the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfplus_kernels.contract.layout import Scalar
from sfplus_kernels.engine import engine as ops
from sfplus_kernels.engine.engine import Entry
from sfplus_kernels.processes.sharding import as_part_of, is_dtensor, local, shards

TensorState = dict[str, Tensor]
SCALARS = ("step", "y_beta")  # in the order of layout.Scalar
BUFFERS = (*ops.STATE_TENSORS, "master_param")


class Iterates(NamedTuple):
    """The three sequences at one parameter: fresh tensors of its shape, in the state's dtype."""

    x: Tensor
    y: Tensor
    z: Tensor


def iterates(param: Tensor, state: TensorState | None, train_mode: bool) -> Iterates:
    """z = y + b e and x = y - (1 - b) e; three copies of a parameter that has no state yet."""
    value = local(param).detach()
    if not state:
        values = [value.to(ops.state_dtype(param), copy=True) for _ in Iterates._fields]
        return Iterates(*(as_part_of(copy, param) for copy in values))
    e, b = local(state["displacement"]), state["y_beta"]
    z_share, x_share = b.to(e.dtype) * e, (1 - b).to(e.dtype) * e
    if "master_param" in state:
        y = local(state["master_param"]).clone()
    elif train_mode:
        y = value.clone()
    else:
        y = value + x_share
    return Iterates(*(as_part_of(t, param) for t in (y - x_share, y, y + z_share)))


def new_state(param: Tensor, names: Iterable[str]) -> TensorState:
    """State before the first step: zero moments, x = y = z = the parameter."""
    value, dtype = local(param).detach(), ops.state_dtype(param)
    buffers = {name: torch.zeros_like(value, dtype=dtype) for name in names}
    if ops.needs_master(param):
        buffers["master_param"] = torch.empty_like(value, dtype=dtype).copy_(value)
    state = {name: as_part_of(buffer, param) for name, buffer in buffers.items()}
    for name in SCALARS:
        state[name] = torch.zeros((), dtype=torch.float64, device=param.device)
    return state


def create_missing_state(
    states: MutableMapping[Tensor, TensorState],
    params: Iterable[Tensor],
    gradients: Iterable[Tensor | None],
    names: Iterable[tuple[str, ...]],
) -> None:
    """New state, with the buffers ``names``, for each parameter that has a gradient and no state.

    Raises:
        RuntimeError: the state that there is has other buffers.
    """
    for param, grad, buffers in zip(params, gradients, names, strict=True):
        if grad is None:
            continue
        state = states.get(param)
        if not state:
            states[param] = new_state(param, buffers)
        elif any((name in state) != (name in buffers) for name in ops.STATE_TENSORS):
            raise RuntimeError(
                f"the settings of a group now ask for the buffers {buffers}, but the state of a "
                f"parameter has {sorted(state)}; put the settings back, or make a new optimizer"
            )


def make_entries(
    params: Iterable[Tensor],
    groups: list[dict[str, Any]],
    states: Mapping[Tensor, TensorState],
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
    for index, group in enumerate(groups):
        for param in group["params"]:
            places[id(param)] = (index, len(places))
    entries = []
    for param in params:
        state = states.get(param)
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
    expected = (ops.state_dtype(param), part.shape, local(state["displacement"]).stride())
    same = all((b.dtype, b.shape, b.stride()) == expected for b in buffers)
    same = same and all(shards(state[name]) == shards(param) for name in names)
    if not same or ops.needs_master(param) != ("master_param" in state):
        made_for = {name: (b.dtype, tuple(b.shape)) for name, b in zip(names, buffers, strict=True)}
        raise RuntimeError(
            f"a parameter is now {param.dtype}, of which this process holds shape {tuple(part.shape)}, but "
            f"its state is {made_for}; make a new optimizer after model.to(dtype) or after the model is "
            "divided among processes"
        )
