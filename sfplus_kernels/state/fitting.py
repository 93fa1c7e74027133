"""Whether the state of a parameter fits it: the buffers that it should have, of which dtypes and shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfplus_kernels.contract.eight_bits import exponents_shape
from sfplus_kernels.contract.formats import (
    BUFFERS,
    EXPONENTS,
    HALF_DTYPES,
    LOW,
    STEP,
    asked,
    buffer_dtypes,
    format_of,
)
from sfplus_kernels.processes.sharding import is_dtensor, local, shards
from sfplus_kernels.state.checks import check_memory
from sfplus_kernels.state.containers import TensorState
from sfplus_kernels.state.moments import fits_blocks, goes_in_blocks


def dtypes_of(param: Tensor, state: TensorState, state_format: str) -> dict[str, torch.dtype]:
    """Of the buffers that a parameter has, or should have beside those that its algorithm asked for."""
    names = asked(state)
    in_blocks = goes_in_blocks(param, state)
    kept = format_of(param.dtype, names, state_format, in_blocks=in_blocks)
    dtypes = buffer_dtypes(param.dtype, names, kept)
    if "y_high" in state and any(name in dtypes for name in LOW):
        dtypes["y_high"] = HALF_DTYPES["y_high"]
    return dtypes


def check_fits(
    slot: int, param: Tensor, state: TensorState, state_format: str, needed: Sequence[str]
) -> None:
    part = local(param)
    names = [name for name in BUFFERS if name in state]
    for name in needed:
        if name not in state:
            raise RuntimeError(
                f"the state of parameter {slot} has {sorted(state)}; expected {name!r} too. Put it back, or "
                "let the parameter begin anew with optimizer.state.pop(param)"
            )
    for name in (*names, STEP):
        if not isinstance(state[name], Tensor) and (name in names or not has_number(state[name])):
            raise TypeError(
                f"state[{name!r}] of parameter {slot} is a {type(state[name]).__name__}; expected a tensor"
            )
    step = state[STEP]
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(
            f"state['step'] of parameter {slot} has shape {tuple(step.shape)}; expected a scalar"
        )
    buffers = {name: local(state[name]) for name in names}
    dtypes = dtypes_of(param, state, state_format)
    if EXPONENTS in buffers:
        _check_blocks(slot, param, state)
    fits = dtypes.keys() == buffers.keys()
    fits = fits and all(b.shape == part.shape for n, b in buffers.items() if n != EXPONENTS)
    fits = fits and all(
        b.dtype.is_floating_point == dtypes[name].is_floating_point for name, b in buffers.items()
    )
    fits = fits and all(b.dtype == dtypes[n] for n, b in buffers.items() if _is_code(dtypes[n]))
    # a single one of another dtype was replaced; where all are, the model was converted
    fits = fits and (not buffers or any(b.dtype == dtypes[n] for n, b in buffers.items()))
    fits = fits and all(shards(state[name]) == shards(param) for name in names)
    if not fits:
        made_for = {name: (b.dtype, tuple(b.shape)) for name, b in buffers.items()}
        raise RuntimeError(
            f"parameter {slot} is now {param.dtype}, of which this process holds shape {tuple(part.shape)}, "
            f"and state_format is {state_format!r}, but its state is {made_for}; make a new optimizer after "
            "model.to(dtype) or after the model is divided among processes, and for another state_format, "
            "which then loads this one's state_dict()"
        )
    for name, buffer in buffers.items():
        check_memory(buffer, f"state[{name!r}] of parameter {slot}")


def _check_blocks(slot: int, param: Tensor, state: TensorState) -> None:
    part = local(param)
    if part.dim() < 2:
        return
    if is_dtensor(param) and not fits_blocks(param):
        rows, width = part.shape[0], part.shape[1:].numel()
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} is divided so that this process holds {rows} x "
            f"{width} of it, which cuts blocks of 32, but its state is '8bit'; make a new optimizer after "
            "the model is divided"
        )
    found, expected = tuple(local(state[EXPONENTS]).shape), exponents_shape(part.shape)
    if found != expected:
        raise ValueError(
            f"{EXPONENTS} of parameter {slot} has shape {found}; expected {expected}: one for 32 elements of "
            "a row"
        )


def _is_code(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point


def has_number(value: object) -> bool:
    """Whether a count of steps may be kept like this: older versions of torch had it as a Python number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
