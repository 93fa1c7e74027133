"""x, y and z of one parameter, from what is stored."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sfplus_kernels.contract.formats import state_dtype
from sfplus_kernels.processes.sharding import as_part_of, local
from sfplus_kernels.state.containers import TensorState


class Iterates(NamedTuple):
    """The three sequences at one parameter: fresh tensors of its shape, in the state's dtype."""

    x: Tensor
    y: Tensor
    z: Tensor


def iterates(param: Tensor, state: TensorState | None, train_mode: bool) -> Iterates:
    """z = y + b e and x = y - (1 - b) e; three copies of a parameter that has no state yet."""
    value = local(param).detach()
    if not state:
        values = [value.to(state_dtype(param.dtype), copy=True) for _ in Iterates._fields]
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
