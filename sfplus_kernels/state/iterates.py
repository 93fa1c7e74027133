"""x, y and z of one parameter, from what is stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import low_of, state_dtype, whole
from sfplus_kernels.processes.sharding import as_part_of, local
from sfplus_kernels.state.containers import TensorState


class Iterates(NamedTuple):
    """x, y and z at one parameter: fresh tensors of its shape, on its device.

    They are in float32, those of a float64 parameter in float64; of a DTensor DTensors, placed as it is.
    """

    x: Tensor
    y: Tensor
    z: Tensor


def iterates(
    param: Tensor, state: TensorState | None, b: float | Tensor, train_mode: bool
) -> Iterates:
    """z = y + b e and x = y - (1 - b) e; three copies of a parameter that has no state yet.

    Args:
        b: beta with which y was written.
        train_mode: whether ``param`` holds y, else x.
    """
    value = local(param).detach()
    if state is None:
        values = [value.to(state_dtype(param.dtype), copy=True) for _ in Iterates._fields]
        return Iterates(*(as_part_of(copy, param) for copy in values))
    if "displacement" in state:
        e = local(state["displacement"]).to(param.device, state_dtype(param.dtype))
    else:  # nothing is averaged: they are one
        e = torch.zeros((), dtype=state_dtype(param.dtype), device=param.device)
    b = torch.as_tensor(b, dtype=torch.float64, device=e.device)
    z_share, x_share = b.to(e.dtype) * e, (1 - b).to(e.dtype) * e
    y = value.to(e.dtype) if train_mode else value.to(e.dtype) + x_share
    low = low_of(state)
    if low is not None and train_mode:
        y = whole(value, local(low).to(param.device))
    elif low is not None or "master_param" in state:
        # the parameter follows what is kept, unless somebody wrote to it
        kept = kept_y(param, state)
        followed = (kept if train_mode else kept - x_share).to(value.dtype)
        y = torch.where(value == followed, kept, y)
    y = y.clone()
    return Iterates(*(as_part_of(t, param) for t in (y - x_share, y, y + z_share)))


def kept_y(param: Tensor, state: TensorState) -> Tensor:
    """y of a parameter that does not hold all of it, as it is kept; float32."""
    if "master_param" in state:
        return local(state["master_param"]).to(param.device)
    high = local(state["y_high"]).to(param.device) if "y_high" in state else local(param).detach()
    return whole(high, local(low_of(state)).to(param.device))
