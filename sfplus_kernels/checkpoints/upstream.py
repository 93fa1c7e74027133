"""States of the ``schedulefree`` package: reading and writing them.

Its in-place classes keep z beside the parameter, its references x, y and z. z alone becomes a displacement
only with the parameter, which may be loaded after the state: that waits for the first use (unsettled.py).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.algorithm import Algorithm
from sfplus_kernels.contract.formats import BUFFERS, STEP, state_dtype
from sfplus_kernels.processes.sharding import as_part_of, local, placed_as
from sfplus_kernels.state.containers import TensorState, has_own
from sfplus_kernels.state.iterates import iterates
from sfplus_kernels.state.moments import moments_of
from sfplus_kernels.state.tensors import of_others

RUN_KEYS = ("k", "lr_max", "weight_sum")

ITERATES = ("x", "y", "z")
"""What its references keep of a parameter; its other classes have z alone."""

OWN_KEYS = frozenset({*ITERATES, *BUFFERS, STEP})
"""In the state of a parameter those that are not what others put there."""

ONLY_OURS: dict[str, tuple[Any, str]] = {
    "maximize": (False, "upstream descends, unless the loss is negated there"),
    "max_grad_norm": (None, "upstream does not clip, unless clip_grad_norm_ is called there"),
    "max_lr": (None, "upstream has no cap on gamma, and its steps could be far larger"),
    "row_norm": (None, "upstream does not bring rows to a norm"),
    "decoupling_c": (None, "upstream has no such factor on the averaging weight"),
    "f_star": (0.0, "upstream's Polyak step aims at a loss of 0"),
}
"""What changes the steps here and does not exist there: its value where it does nothing, and what is lost."""


def is_upstream(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are groups of a state dict that was not saved by a class of ours."""
    return not any("optimizer" in group for group in groups)


def arguments(cls: type) -> list[str]:
    """Names of the hyperparameters that a class has in common with its upstream namesake."""
    signature = inspect.signature(cls).parameters.values()
    positional = [p.name for p in signature if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [name for name in positional if name not in ("params", "foreach")]


def converted_groups(
    name: str,
    algorithm: Algorithm,
    groups: Sequence[Mapping[str, Any]],
    saved_groups: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Groups of an upstream state dict as ours; what upstream does not have keeps its present value.

    Args:
        name: of the class that loads.
        groups: those that there are now.

    Raises:
        ValueError: the groups of something else, or of a run that cannot be continued.
    """
    needed = {*algorithm.upstream_arguments(), *RUN_KEYS}
    if algorithm.has_modes:
        needed.add("train_mode")
    converted = []
    for own, saved in zip(groups, saved_groups, strict=True):
        missing = sorted(needed - set(saved))
        if missing or (not algorithm.has_modes and "train_mode" in saved):
            what = f"lacks {', '.join(missing)}" if missing else "has modes"
            raise ValueError(
                f"the state dict was saved by another optimizer: a group {what}; expected one of "
                f"{name}, or of its namesake in the schedulefree package. Load it "
                "into the class that wrote it"
            )
        if saved.get("polyak_beta", 0) > 0:
            raise ValueError(
                f"upstream's state has polyak_beta={saved['polyak_beta']}; expected 0: its running mean of "
                "the gradient's L1 norm is the bias-corrected one, from which ours cannot be recovered"
            )
        new = {**own, **{key: saved[key] for key in saved if key in own}}
        converted.append(new | {"y_beta": algorithm.beta_of_y(new)})
    return converted


def unsettled_state(
    param: Tensor, moments: tuple[str, ...], saved: Mapping[str, Any], k: float, index: object
) -> TensorState:
    """The state of one parameter, still with z (and x and y) in place of the displacement.

    What others put there comes along; with nothing else in it, the parameter has not begun.

    Raises:
        ValueError: other keys or shapes.
    """
    others = of_others(param, saved, OWN_KEYS)
    if len(others) == len(saved):
        return others
    iterates = set(ITERATES) if "x" in saved else {"z"}
    if OWN_KEYS.intersection(saved) != iterates | set(moments):
        raise ValueError(
            f"the state of parameter {index} has the keys {sorted(map(str, saved))}; expected "
            f"{sorted({'z', *moments})}, as the schedulefree package saves them, or x and y too"
        )
    state = {}
    for name in sorted(iterates | set(moments)):  # the same order in all processes
        value = saved[name]
        if value.shape != param.shape:
            raise ValueError(
                f"{name} of parameter {index} has shape {tuple(value.shape)}; expected "
                f"{tuple(param.shape)}"
            )
        part = torch.empty_like(local(param).detach(), dtype=state_dtype(param.dtype))
        state[name] = as_part_of(part.copy_(placed_as(value, param)), param)
    state["step"] = torch.tensor(float(k), dtype=torch.float64, device=param.device)
    return {**state, **others}


def check_upstream_can_go_on(groups: Sequence[Mapping[str, Any]], arguments: Sequence[str]) -> None:
    """Whether upstream's next steps would be ours.

    Args:
        groups: of the optimizer's own state dict.
        arguments: the hyperparameters that upstream has too.

    Raises:
        ValueError: a setting is at work that upstream does not have.
    """
    for group in groups:
        for name, (idle, lost) in ONLY_OURS.items():
            value = group.get(name, idle)
            if value != idle and value != math.inf:
                raise ValueError(
                    f"{name} is {value}; expected {idle}: {lost}. If that is meant, set "
                    f"group['{name}'] = {idle} in each group before"
                )
        warmup_steps, k = group.get("warmup_steps", 0), float(group["k"])
        if "warmup_steps" not in arguments and k + 1 < warmup_steps:
            raise ValueError(
                f"{k:.0f} of warmup_steps={warmup_steps} steps are done; expected all: upstream's class "
                "has no warmup, and its next steps would be larger. Export later, or, if that is meant, set "
                "group['warmup_steps'] = 0 in each group before"
            )


def upstream_state_dict(
    algorithm: Algorithm,
    saved: Mapping[str, Any],
    params: Sequence[Tensor],
    *,
    with_x_and_y: bool,
) -> dict[str, Any]:
    """A state dict for the class of the schedulefree package that has this one's name.

    Args:
        saved: the optimizer's own state dict.
        params: of all groups, in their order.
        with_x_and_y: as upstream's references keep them.

    Raises:
        ValueError: upstream would not continue this run.
    """
    arguments = algorithm.upstream_arguments()
    check_upstream_can_go_on(saved["param_groups"], arguments)
    betas = {n: group["y_beta"] for group in saved["param_groups"] for n in group["params"]}
    states = {}
    for number, own in saved["state"].items():
        if not has_own(own):
            continue
        param = params[number]
        x, y, z = map(
            local, iterates(param, own, betas[number], saved["param_groups"][0]["train_mode"])
        )
        sequences = {"x": x, "y": y, "z": z} if with_x_and_y else {"z": z}
        states[number] = {
            name: as_part_of(tensor.detach().to(param.dtype, copy=True), param)
            for name, tensor in (sequences | moments_of(own)).items()
        }
    names = [*arguments, *RUN_KEYS, "scheduled_lr", "params"]
    names += ["train_mode"] if algorithm.has_modes else []
    # skip_nonfinite does nothing there, but comes along, so that it is back when the run comes back.
    for name in ("inner_momentum", "skip_nonfinite"):
        if any(g.get(name) for g in saved["param_groups"]):
            names.append(name)
    groups = [{name: group[name] for name in names} for group in saved["param_groups"]]
    for group, own in zip(groups, saved["param_groups"], strict=True):
        if "foreach" in own:
            group["foreach"] = own["foreach"] is not False
    return {"state": states, "param_groups": groups}
