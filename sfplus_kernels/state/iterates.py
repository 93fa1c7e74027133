"""x, y and z of one parameter, from what is stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import state_dtype
from sfplus_kernels.processes.sharding import as_part_of, local
from sfplus_kernels.state.containers import TensorState


class Iterates(NamedTuple):
    """The three sequences at one parameter: fresh tensors of its shape, in the state's dtype."""

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
    e = local(state["displacement"]).to(param.device)
    b = torch.as_tensor(b, dtype=torch.float64, device=e.device)
    z_share, x_share = b.to(e.dtype) * e, (1 - b).to(e.dtype) * e
    y = value.to(e.dtype) if train_mode else value.to(e.dtype) + x_share
    if "master_param" in state:  # which the parameter follows, unless somebody wrote to it
        master = local(state["master_param"]).to(param.device)
        followed = (master if train_mode else master - x_share).to(value.dtype)
        y = torch.where(value == followed, master, y)
    y = y.clone()
    return Iterates(*(as_part_of(t, param) for t in (y - x_share, y, y + z_share)))
