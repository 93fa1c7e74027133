"""The state of a parameter from one format to another: decoded exactly, encoded to the nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from sfplus_kernels.contract.eight_bits import HALF_OF_Y, exponents_shape, parts
from sfplus_kernels.contract.formats import (
    CODES,
    EXPONENTS,
    OF_Y,
    asked,
    buffer_dtypes,
    format_of,
    halves,
    low_of,
    nearest,
    needs_master,
)
from sfplus_kernels.contract.layout import Format
from sfplus_kernels.processes.sharding import as_part_of, local
from sfplus_kernels.state.containers import TensorState
from sfplus_kernels.state.iterates import iterates, kept_y
from sfplus_kernels.state.moments import goes_in_blocks, in_codes, moments_of


def to_format(
    param: Tensor, state: TensorState, state_format: str, b: float, *, train_mode: bool
) -> None:
    """Bring ``state`` into ``state_format``, in place; nothing happens if it is in it.

    A bfloat16 parameter becomes what it is in that format, by which that knows that nobody has written to it:
    the upper half of y, or its rounding to even; or the rounding of x as y and e are from now on.

    Args:
        b: beta with which y was written.
        train_mode: whether ``param`` holds y, else x.
    """
    names = asked(state)
    kept = format_of(param.dtype, names, state_format, in_blocks=goes_in_blocks(param))
    wanted = buffer_dtypes(param.dtype, names, kept)
    if all(name in state and state[name].dtype == dtype for name, dtype in wanted.items()):
        return
    y = local(iterates(param, state, b, train_mode).y) if needs_master(param.dtype) else None
    found = moments_of(state)
    put = {}
    if "displacement" in names:
        put["displacement"] = nearest(local(state["displacement"]), wanted["displacement"])
    if kept == Format.QUARTER:
        put |= in_codes(found)
    else:
        put |= {name: nearest(value, wanted[name]) for name, value in found.items()}
    for name in (*names, *CODES.values(), EXPONENTS):
        if name not in put:
            state.pop(name, None)
    for name, value in put.items():
        if name in state and state[name].dtype == value.dtype:
            continue
        shape = exponents_shape(param.shape) if name == EXPONENTS else None
        like = value if kept == Format.QUARTER else local(param).detach()
        buffer = torch.empty_like(like, dtype=value.dtype, device=param.device)
        state[name] = as_part_of(buffer.copy_(value), param, shape)
    if y is not None:
        _put_y(param, state, y, kept, train_mode=train_mode)
        if not train_mode:
            y, e = kept_y(param, state), local(state["displacement"]).to(y.device, y.dtype)
            local(param).detach().copy_(y - torch.as_tensor(1 - b, dtype=e.dtype) * e)


def _put_y(param: Tensor, state: TensorState, y: Tensor, kept: Format, *, train_mode: bool) -> None:
    value = local(param).detach()
    for name in OF_Y:
        state.pop(name, None)

    def put(name: str, values: Tensor) -> None:
        buffer = torch.empty_like(value, dtype=values.dtype)
        state[name] = as_part_of(buffer.copy_(values), param)

    if kept == Format.FULL:
        put("master_param", y)
        if train_mode:
            value.copy_(y)
        return
    high, low = parts(y, HALF_OF_Y) if kept == Format.QUARTER else halves(y)
    put("y_low_byte" if kept == Format.QUARTER else "y_low", low)
    if train_mode:
        value.copy_(high)
    else:
        put("y_high", high)


def beside(
    param: Tensor, state: TensorState, state_format: str, b: float, *, train_mode: bool
) -> None:
    """As ``to_format``, but ``param`` stays as it is: ``state`` is then read beside it.

    Halfway between two bfloat16 numbers the formats round in different ways. There y moves by the last place
    that is kept of it, so that the parameter still is its rounding, and nobody seems to have written to it.
    """
    rounded = param.detach().clone()
    to_format(rounded, state, state_format, b, train_mode=train_mode)
    if not (needs_master(param.dtype) and train_mode):
        return
    held = local(param).detach()
    other = local(rounded) != held
    low = low_of(state)
    if low is None:
        y = local(state["master_param"])
        y.copy_(torch.where(other, torch.nextafter(y, held.to(y.dtype)), y))
        return
    bits = local(low).view(torch.int16) if low.dtype != torch.int8 else local(low)
    bits.masked_fill_(other, torch.iinfo(bits.dtype).max)


def park(param: Tensor, state: TensorState) -> None:
    """Before the parameter becomes x: keep the upper half of y, if the parameter is that."""
    if low_of(state) is not None and "y_high" not in state:
        state["y_high"] = as_part_of(local(param).detach().clone(), param)
