"""Checking and copying a state dict before anything of the optimizer changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints import torch_optim, upstream
from sfplus_kernels.checkpoints.unsettled import Y_BETA
from sfplus_kernels.contract.algorithm import Algorithm
from sfplus_kernels.contract.eight_bits import exponents_shape
from sfplus_kernels.contract.formats import (
    BUFFERS,
    CODES,
    EXPONENTS,
    HALF_DTYPES,
    LOW,
    STEP,
    asked,
    averages,
    begun_otherwise,
    buffer_dtypes,
    is_half,
    is_quarter,
)
from sfplus_kernels.contract.layout import Format
from sfplus_kernels.processes.sharding import as_part_of, local, placed_as, plain
from sfplus_kernels.state.containers import TensorState, has_own
from sfplus_kernels.state.moments import fits_blocks, moments_of
from sfplus_kernels.state.tensors import of_others


def checked_state(
    name: str,
    algorithm: Algorithm,
    groups: Sequence[Mapping[str, Any]],
    loaded: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[Tensor, TensorState]]:
    """Groups and per-parameter state of ``loaded``, copied to the parameters' devices and layouts.

    Args:
        name: of the class that loads.
        groups: those that there are now.
        loaded: the state dict.
        defaults: what a group has of the keys that an older version did not save.

    Raises:
        ValueError: another class, other groups, other keys, shapes or dtypes.
    """
    saved_groups = loaded["param_groups"]
    foreign = upstream.is_upstream(saved_groups)
    from_upstream = foreign and any(averages(algorithm.buffers(group)) for group in groups)
    if not foreign:
        _check_class(name, saved_groups)
    sizes = [len(group["params"]) for group in groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"the state dict has groups of {saved_sizes} parameters; expected {sizes}, "
            "as in this optimizer: build it from the same model and groups"
        )
    if from_upstream:
        converted = upstream.converted_groups(name, algorithm, groups, saved_groups)
    elif foreign:
        converted = torch_optim.converted_groups(
            name, algorithm, groups, saved_groups, loaded["state"]
        )
    else:
        converted = [{**defaults, **group} for group in saved_groups]
    states = {}
    for group, saved_group, new in zip(groups, saved_groups, converted, strict=True):
        new["params"] = saved_group["params"]
        new["state_format"] = group[
            "state_format"
        ]  # memory is planned by whoever makes the optimizer
        names = algorithm.buffers(new)
        for param, index in zip(group["params"], saved_group["params"], strict=True):
            state = loaded["state"].get(index)
            if not state:
                continue
            if from_upstream:
                moments = tuple(name for name in names if name != "displacement")
                states[param] = upstream.unsettled_state(param, moments, state, new["k"], index)
            elif foreign:
                states[param] = torch_optim.unsettled_state(param, names, state, index)
            else:
                states[param] = _copied(param, names, state, index, new["train_mode"])
        if "y_beta" not in saved_group and not foreign:
            new["y_beta"] = _beta_of_group([states[p] for p in group["params"] if p in states])
    if from_upstream:
        _check_recoverable(algorithm, converted, states)
    return converted, states


def _check_recoverable(
    algorithm: Algorithm, groups: list[dict[str, Any]], states: Mapping[Tensor, Any]
) -> None:
    only_z = any("z" in state and "x" not in state for state in states.values())
    for group in groups:
        if only_z and group["train_mode"] and algorithm.beta_of_y(group) == 0:
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
    param: Tensor, buffers: Sequence[str], state: Mapping[str, Any], index: object, train_mode: bool
) -> TensorState:
    """In the format that it was saved in: ``settle`` changes that, when the parameters are there."""
    if not has_own(state):  # the parameter has not begun, and others keep something of theirs there
        return of_others(param, state, ())
    kept = _format_of_saved(state)
    found = asked(state)
    names = buffers if begun_otherwise(buffers, found) else found
    dtypes = buffer_dtypes(param.dtype, names, kept)
    if any(name in dtypes for name in LOW) and not train_mode:
        dtypes["y_high"] = HALF_DTYPES["y_high"]
    missing = sorted({*dtypes, STEP} - set(state))
    foreign = sorted({*BUFFERS} & set(state) - {*dtypes})
    if missing or foreign:
        raise ValueError(
            f"the state of parameter {index} has the keys {sorted(map(str, state))}; expected "
            f"{sorted([*dtypes, STEP])} for a parameter of dtype {param.dtype} saved in "
            f"{'train' if train_mode else 'eval'} mode: convert the model to the dtype that it was saved "
            "with, and load its state in the mode that it was saved in"
        )
    copied: TensorState = {}
    if kept == Format.QUARTER and EXPONENTS in dtypes and not fits_blocks(param):
        state, dtypes = _without_codes(state, dtypes, index, param.shape)
    # in an order that is the same in all processes: DTensors are distributed together, one by one
    for name, dtype in dtypes.items():
        value = state[name]
        shape = tuple(param.shape)
        if name == EXPONENTS:
            shape = exponents_shape(param.shape)
            _check_exponents(value, shape, index)
        if tuple(value.shape) != shape or value.dtype != dtype:
            raise ValueError(
                f"{name} of parameter {index} has shape {tuple(value.shape)} and dtype "
                f"{value.dtype}; expected {shape} and {dtype}"
            )
        placed = placed_as(value, param)
        if name == EXPONENTS:
            part = placed.detach().to(local(param).device, copy=True)
            copied[name] = as_part_of(part, param, exponents_shape(param.shape))
            continue
        # the parameter's own layout in memory, whatever that of the saved tensor
        part = torch.empty_like(local(param).detach(), dtype=dtype).copy_(placed)
        copied[name] = as_part_of(part, param)
    for name in (STEP, *([Y_BETA] if Y_BETA in state else [])):
        value = torch.as_tensor(state[name])
        if value.dim() != 0:
            raise ValueError(
                f"{name} of parameter {index} has shape {tuple(value.shape)}; expected a scalar"
            )
        copied[name] = value.detach().to(param.device, torch.float64, copy=True)
    return {**copied, **of_others(param, state, copied)}


def _format_of_saved(state: Mapping[str, Any]) -> Format:
    return Format.QUARTER if is_quarter(state) else Format.HALF if is_half(state) else Format.FULL


def _check_exponents(value: Tensor, expected: tuple[int, int], index: object) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{EXPONENTS} of parameter {index} has shape {tuple(value.shape)}; expected {expected}: one for "
            "32 elements of a row"
        )


def _without_codes(
    state: Mapping[str, Any], dtypes: Mapping[str, torch.dtype], index: object, shape: torch.Size
) -> tuple[dict[str, Any], dict[str, torch.dtype]]:
    """Moments in float32 in place of their codes, for a parameter whose parts would cut blocks.

    All processes must take part, and each has them whole for a moment.
    """
    whole = {
        name: plain(state[name]) if name in (*CODES.values(), EXPONENTS) else state[name]
        for name in state
    }
    _check_exponents(whole[EXPONENTS], exponents_shape(shape), index)
    found = moments_of(whole)
    state = {**{n: v for n, v in whole.items() if n not in (*CODES.values(), EXPONENTS)}, **found}
    kept = {n: d for n, d in dtypes.items() if n not in (*CODES.values(), EXPONENTS)}
    return state, {**dict.fromkeys(found, torch.float32), **kept}


def _beta_of_group(states: Sequence[TensorState]) -> float:
    """beta of y of a group that an older version saved: that of the tensor with the most steps.

    Only where another tensor has another one, it stays in that one's state, to be settled.
    """
    states = [state for state in states if Y_BETA in state]
    if not states:
        return 0.0
    b = float(max(states, key=lambda state: float(state[STEP]))[Y_BETA])
    for state in states:
        if float(state[Y_BETA]) == b:
            del state[Y_BETA]
    return b
