"""Checking and copying a state dict before anything of the optimizer changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints import upstream
from sfplus_kernels.engine import engine as ops
from sfplus_kernels.processes.sharding import as_part_of, local, placed_as

if TYPE_CHECKING:
    from sfplus_kernels.core.stateful import StatefulOptimizer


def checked_state(
    optimizer: StatefulOptimizer, loaded: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[Tensor, dict[str, Tensor]]]:
    """Groups and per-parameter state of ``loaded``, copied to the parameters' devices and layouts.

    Raises:
        ValueError: another class, other groups, other keys, shapes or dtypes.
    """
    groups, saved_groups = optimizer.param_groups, loaded["param_groups"]
    from_upstream = upstream.is_upstream(saved_groups)
    if not from_upstream:
        _check_class(type(optimizer).__name__, saved_groups)
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"the state dict has groups of {saved_sizes} parameters; expected {sizes}, "
            "as in this optimizer: build it from the same model and groups"
        )
    if from_upstream:
        converted = upstream.converted_groups(optimizer, saved_groups)
    else:
        converted = [dict(group) for group in saved_groups]
    states = {}
    for group, saved_group, new in zip(groups, saved_groups, converted, strict=True):
        new["params"] = saved_group["params"]
        names = optimizer.state_tensors(new)
        for param, index in zip(group["params"], saved_group["params"], strict=True):
            state = loaded["state"].get(index)
            if not state:
                continue
            if from_upstream:
                moments = tuple(name for name in names if name != "displacement")
                states[param] = upstream.unsettled_state(param, moments, state, new["k"], index)
            else:
                states[param] = _copied(param, names, state, index)
    if from_upstream:
        _check_recoverable(optimizer, converted, states)
    return converted, states


def _check_recoverable(
    optimizer: StatefulOptimizer, groups: list[dict[str, Any]], states: Mapping[Tensor, Any]
) -> None:
    only_z = any("x" not in state for state in states.values())
    for group in groups:
        if only_z and group["train_mode"] and optimizer.beta_of_y(group) == 0:
            raise ValueError(
                "upstream's state was saved in train mode with a momentum of 0, where y is z and x is "
                "lost; save it in eval mode"
            )


def _check_class(expected: str, saved_groups: list[dict[str, Any]]) -> None:
    found = {group.get("optimizer", "another optimizer") for group in saved_groups}
    if found != {expected}:
        raise ValueError(
            f"the state dict was saved by {', '.join(sorted(found))}; expected one of {expected}. "
            "Load it into the class that wrote it"
        )


def _copied(
    param: Tensor, buffers: Iterable[str], state: Mapping[str, Any], index: object
) -> dict[str, Tensor]:
    dtype = ops.state_dtype(param)
    # in an order that is the same in all processes: DTensors are distributed together, one by one
    names = (*buffers, *(["master_param"] if ops.needs_master(param) else []))
    expected = {*names, "step", "y_beta"}
    if set(state) != expected:
        raise ValueError(
            f"the state of parameter {index} has the keys {sorted(state)}; expected "
            f"{sorted(expected)} for a parameter of dtype {param.dtype}: "
            "convert the model to the dtype that it was saved with"
        )
    copied = {}
    for name in names:
        value = state[name]
        if value.shape != param.shape or value.dtype != dtype:
            raise ValueError(
                f"{name} of parameter {index} has shape {tuple(value.shape)} and dtype "
                f"{value.dtype}; expected {tuple(param.shape)} and {dtype}"
            )
        # the parameter's own layout in memory, whatever that of the saved tensor
        part = torch.empty_like(local(param).detach(), dtype=dtype).copy_(placed_as(value, param))
        copied[name] = as_part_of(part, param)
    for name in ("step", "y_beta"):
        value = torch.as_tensor(state[name])
        if value.dim() != 0:
            raise ValueError(
                f"{name} of parameter {index} has shape {tuple(value.shape)}; expected a scalar"
            )
        copied[name] = value.detach().to(param.device, torch.float64, copy=True)
    return copied
