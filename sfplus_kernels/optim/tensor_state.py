"""Per-tensor state: making it, keeping it beside its parameter, handing it to the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfplus_kernels import ops
from sfplus_kernels.backends.layout import Scalar
from sfplus_kernels.ops import Entry

TensorState = dict[str, Tensor]
SCALARS = ("step", "y_beta")  # in the order of layout.Scalar


class Iterates(NamedTuple):
    """The three sequences at one parameter: fresh tensors of its shape, in the state's dtype."""

    x: Tensor
    y: Tensor
    z: Tensor


def iterates(param: Tensor, state: TensorState | None, train_mode: bool) -> Iterates:
    """z = y + b e and x = y - (1 - b) e; three copies of a parameter that has no state yet."""
    if not state:
        value = param.detach().to(ops.state_dtype(param))
        return Iterates(value.clone(), value.clone(), value.clone())
    e, b = state["displacement"], state["y_beta"]
    z_share, x_share = b.to(e.dtype) * e, (1 - b).to(e.dtype) * e
    if "master_param" in state:
        y = state["master_param"].clone()
    elif train_mode:
        y = param.detach().clone()
    else:
        y = param.detach() + x_share
    return Iterates(x=y - x_share, y=y, z=y + z_share)


def new_state(param: Tensor, names: Iterable[str]) -> TensorState:
    """State before the first step: zero moments, x = y = z = the parameter."""
    value, dtype = param.detach(), ops.state_dtype(param)
    state = {name: torch.zeros_like(value, dtype=dtype) for name in names}
    if ops.needs_master(param):
        state["master_param"] = torch.empty_like(value, dtype=dtype).copy_(value)
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
        entry = Entry(
            param=param,
            master_param=state.get("master_param"),
            group=group_index,
            slot=slot,
            grad_dtype=None if grad_dtypes is None else grad_dtypes[id(param)],
            exp_avg=state.get("exp_avg"),
            exp_avg_sq=state.get("exp_avg_sq"),
            displacement=state["displacement"],
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
    buffers = [name for name in (*ops.STATE_TENSORS, "master_param") if name in state]
    for name in buffers:
        if state[name].device != param.device:
            state[name] = state[name].to(param.device)
    layout = state["displacement"].stride()
    expected = (ops.state_dtype(param), param.shape, layout)
    same = all((b.dtype, b.shape, b.stride()) == expected for b in map(state.__getitem__, buffers))
    if not same or ops.needs_master(param) != ("master_param" in state):
        made_for = {name: (state[name].dtype, tuple(state[name].shape)) for name in buffers}
        raise RuntimeError(
            f"a parameter is now {param.dtype} of shape {tuple(param.shape)}, but its state is "
            f"{made_for}; make a new optimizer after model.to(dtype)"
        )
