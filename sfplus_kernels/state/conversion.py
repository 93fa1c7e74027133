"""The state of a parameter from one format to another: decoded exactly, encoded to the nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import (
    ALGORITHM_BUFFERS,
    buffer_dtypes,
    halves,
    nearest,
    needs_master,
)
from sfplus_kernels.processes.sharding import as_part_of, local
from sfplus_kernels.state.containers import TensorState
from sfplus_kernels.state.iterates import kept_y

OF_Y = ("master_param", "y_low", "y_high")
"""What may be kept of y beside the parameter."""


def to_format(param: Tensor, state: TensorState, state_format: str, *, train_mode: bool) -> None:
    """Bring ``state`` into ``state_format``, in place; nothing happens if it is in it.

    A bfloat16 parameter that holds y becomes the upper half of it, or its rounding to even, by which another
    format knows that nobody has written to it.

    Args:
        train_mode: whether ``param`` holds y, else x.
    """
    names = [name for name in ALGORITHM_BUFFERS if name in state]
    wanted = buffer_dtypes(param.dtype, names, state_format)
    value = local(param).detach()

    def put(name: str, values: Tensor) -> None:
        buffer = torch.empty_like(value, dtype=wanted.get(name, value.dtype))
        state[name] = as_part_of(buffer.copy_(values), param)

    if needs_master(param.dtype) and not all(name in state for name in wanted):
        y = kept_y(param, state)
        if train_mode and "master_param" in state:
            y = torch.where(y.to(value.dtype) == value, y, value.to(y.dtype))
        for name in OF_Y:
            state.pop(name, None)
        if "y_low" in wanted:
            high, low = halves(y)
            put("y_low", low)
            if train_mode:
                value.copy_(high)
            else:
                put("y_high", high)
        else:
            put("master_param", y)
            if train_mode:
                value.copy_(y)
    for name in names:
        if state[name].dtype != wanted[name]:
            put(name, nearest(local(state[name]).to(value.device), wanted[name]))


def park(param: Tensor, state: TensorState) -> None:
    """Before the parameter becomes x: keep the upper half of y, if the parameter is that."""
    if "y_low" in state and "y_high" not in state:
        state["y_high"] = as_part_of(local(param).detach().clone(), param)
