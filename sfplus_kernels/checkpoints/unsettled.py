"""Loaded state that gets its form only at the first use, for the parameters may be loaded after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import OF_Y, needs_master, state_dtype
from sfplus_kernels.processes.sharding import as_part_of, local
from sfplus_kernels.state.containers import TensorState, has_own
from sfplus_kernels.state.conversion import to_format

Y_BETA = "y_beta"
"""Older versions had one beta for each parameter, in its state."""


def settle(param: Tensor, state: TensorState, group: Mapping[str, Any]) -> None:
    """Bring the state of one parameter into its form, if it is in another; ``param`` holds y or x.

    Args:
        group: the parameter's.
    """
    b, train_mode = float(group["y_beta"]), bool(group["train_mode"])
    if "z" in state and "displacement" not in state:
        _from_iterates(param, state, b, train_mode)
    elif Y_BETA in state:
        _to_beta_of_group(param, state, b, train_mode)
    elif has_own(state) and needs_master(param.dtype) and not any(name in state for name in OF_Y):
        value = local(param).detach().to(state_dtype(param.dtype))
        state["master_param"] = as_part_of(value, param)
    if has_own(state):
        to_format(param, state, group["state_format"], b, train_mode=train_mode)


def _from_iterates(param: Tensor, state: TensorState, b: float, train_mode: bool) -> None:
    value = local(param).detach().to(state_dtype(param.dtype))
    z = local(state.pop("z")).to(param.device)
    y = local(state.pop("y")).to(param.device) if "y" in state else None
    if "x" in state:
        e = z - local(state.pop("x")).to(param.device)
    elif not train_mode:
        e = z - value
    else:
        e = (z - value) / b
    if needs_master(param.dtype):
        if y is None:
            y = value if train_mode else value + (1 - b) * e
        state["master_param"] = as_part_of(torch.empty_like(value).copy_(y), param)
    state["displacement"] = as_part_of(torch.empty_like(value).copy_(e), param)


def _to_beta_of_group(param: Tensor, state: TensorState, b: float, train_mode: bool) -> None:
    own, e = float(state.pop(Y_BETA)), local(state["displacement"]).to(param.device)
    value = local(param).detach()
    if "master_param" in state:
        y = local(state["master_param"])
        y.add_(((own - b) * e).to(y.device))
        if train_mode:
            value.copy_(y)
    elif train_mode:  # in eval mode the parameter is x, which stays
        value.add_((own - b) * e)
