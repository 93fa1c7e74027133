"""What a checkpoint holds, whoever wrote it: weights and optimizer state by parameter name; x from both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import HALF_DTYPES, low_of, state_dtype, whole
from sfplus_kernels.state.containers import has_own


class Found(NamedTuple):
    """What a checkpoint holds."""

    layout: str
    weights: dict[str, Tensor]  # as saved, buffers and tied names included
    state: dict[
        str, dict[str, Tensor]
    ]  # of the parameters that have any, by their names in ``weights``
    groups: dict[str, Mapping[str, Any]]  # of the same: the group that each is in, "params" apart


class CannotTellError(ValueError):
    """A checkpoint that is not understood; the text says why, and what would work."""


def check_optimizer(
    groups: Iterable[Mapping[str, Any]], states: Iterable[Mapping[str, Any]]
) -> None:
    """Raise CannotTellError unless an optimizer of this package wrote them, all in one mode."""
    groups = list(groups)
    if not groups:
        raise CannotTellError("no optimizer was found in this checkpoint")
    if any("averaging" in group for group in groups):
        raise CannotTellError(
            "the optimizer was a ScheduleFreeWrapper; load it, call eval(), and save the model"
        )
    if any("z" in state for state in states):
        raise CannotTellError(
            "the optimizer was the schedulefree package's, which keeps z: load the checkpoint with that "
            "package, or with this one's class of the same name, call eval(), and save the model"
        )
    if not all("train_mode" in group and "optimizer" in group for group in groups):
        raise CannotTellError(
            "the optimizer was none of sfplus_kernels (its groups have no train_mode); there is no x to "
            "take out"
        )
    without = {group["optimizer"] for group in groups} & {"AdamW", "AdamC", "SGD"}
    if without:
        raise CannotTellError(
            f"the optimizer was {', '.join(sorted(without))}, which averages nothing: the weights are those "
            "that are saved"
        )
    if len({bool(group["train_mode"]) for group in groups}) > 1:
        raise CannotTellError("some groups are in train mode and some are not")


def checked(found: Found) -> Found:
    """``found``, if weights and state belong together.

    Raises:
        CannotTellError: they do not.
    """
    begun = {name: state for name, state in found.state.items() if has_own(state)}
    for name, state in begun.items():
        if name not in found.weights or name not in found.groups:
            raise CannotTellError(
                f"the optimizer has state of {name!r}, which is not among the weights or in no group"
            )
        e = state.get("displacement")
        has_beta = "y_beta" in state or "y_beta" in found.groups[name]
        if e is None or not has_beta or not _is_known(found.weights[name].dtype, e.dtype, state):
            raise CannotTellError(
                f"the state of {name} is kept in another format ({', '.join(sorted(state))}; displacement in "
                f"{None if e is None else e.dtype}); load the checkpoint into the model and the optimizer, "
                "call eval(), and save the model"
            )
        if e.shape != found.weights[name].shape:
            raise CannotTellError(
                f"{name} has the shape {tuple(found.weights[name].shape)}, its state {tuple(e.shape)}: the "
                "names are in another order, or the weights were changed since"
            )
    return found._replace(state=begun)


def _is_known(param: torch.dtype, e: torch.dtype, state: Mapping[str, Tensor]) -> bool:
    """Whether state like this is kept of such a parameter."""
    if e == HALF_DTYPES["displacement"]:
        return param == (torch.float32 if low_of(state) is None else torch.bfloat16)
    return e == state_dtype(param)


def in_train_mode(found: Found) -> bool:
    """Whether the weights are y."""
    return any(group["train_mode"] for group in found.groups.values())


def averaged(found: Found) -> dict[str, Tensor]:
    """The weights with x in place of the parameters, each in its own dtype."""
    if not in_train_mode(found):
        return dict(found.weights)
    return {
        name: _x(found, name) if name in found.state else value
        for name, value in found.weights.items()
    }


def distance(found: Found) -> float:
    """max |x - y| over all parameters."""
    largest = 0.0
    for name, state in found.state.items():
        e = state["displacement"]
        if e.numel():
            largest = max(largest, float(((1 - _b(found, name)) * e.double()).abs().max()))
    return largest


def _b(found: Found, name: str) -> Tensor:
    state, group = found.state[name], found.groups[name]
    b = state["y_beta"] if "y_beta" in state else group["y_beta"]
    return torch.as_tensor(b, dtype=torch.float64)


def _x(found: Found, name: str) -> Tensor:
    value, state = found.weights[name], found.state[name]
    e = state["displacement"]
    dtype = state_dtype(value.dtype)
    if (low := low_of(state)) is not None:
        y = whole(value, low)
    else:
        y = state["master_param"] if "master_param" in state else value.to(dtype)
    return (y - (1 - _b(found, name)).to(dtype) * e.to(dtype)).to(value.dtype)
