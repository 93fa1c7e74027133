"""Checking and copying a state dict before anything of the optimizer changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfplus_kernels import ops

if TYPE_CHECKING:
    from sfplus_kernels.optim.base import ScheduleFreeOptimizer


def checked_state(
    optimizer: ScheduleFreeOptimizer, loaded: Mapping[str, Any]
) -> dict[Tensor, dict[str, Tensor]]:
    """Per-parameter state of ``loaded``, copied to the parameters' devices and memory layouts.

    Raises:
        ValueError: another class, other groups, other keys, shapes or dtypes.
    """
    groups, saved_groups = optimizer.param_groups, loaded["param_groups"]
    _check_class(type(optimizer).__name__, saved_groups)
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"the state dict has groups of {saved_sizes} parameters; expected {sizes}, "
            "as in this optimizer: build it from the same model and groups"
        )
    params = {
        saved: (param, optimizer.state_tensors(saved_group))
        for group, saved_group in zip(groups, saved_groups, strict=True)
        for param, saved in zip(group["params"], saved_group["params"], strict=True)
    }
    return {
        params[index][0]: _copied(*params[index], state, index)
        for index, state in loaded["state"].items()
        if index in params and state
    }


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
    names = {*buffers} | ({"master_param"} if ops.needs_master(param) else set())
    if set(state) != names | {"step", "y_beta"}:
        raise ValueError(
            f"the state of parameter {index} has the keys {sorted(state)}; expected "
            f"{sorted(names | {'step', 'y_beta'})} for a parameter of dtype {param.dtype}: "
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
        copied[name] = torch.empty_like(param.detach(), dtype=dtype).copy_(value)
    for name in ("step", "y_beta"):
        value = torch.as_tensor(state[name])
        if value.dim() != 0:
            raise ValueError(
                f"{name} of parameter {index} has shape {tuple(value.shape)}; expected a scalar"
            )
        copied[name] = value.detach().to(param.device, torch.float64, copy=True)
    return copied
