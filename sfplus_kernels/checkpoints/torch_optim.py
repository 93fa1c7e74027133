"""States of torch's own classes, for the optimizers that average nothing: reading and writing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.algorithm import Algorithm
from sfplus_kernels.contract.formats import BUFFERS, STEP, begun_otherwise, state_dtype
from sfplus_kernels.processes.sharding import as_part_of, local, placed_as
from sfplus_kernels.state.containers import TensorState, has_own
from sfplus_kernels.state.moments import moments_of
from sfplus_kernels.state.tensors import of_others


def converted_groups(
    name: str,
    algorithm: Algorithm,
    groups: Sequence[Mapping[str, Any]],
    saved_groups: Sequence[Mapping[str, Any]],
    states: Mapping[Any, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Groups of torch's state dict as ours; what torch does not have keeps its present value.

    Args:
        name: of the class that loads.
        groups: those that there are now.
        states: of the parameters, by their number.

    Raises:
        ValueError: the groups of something else.
    """
    needed = set(algorithm.upstream_arguments())
    converted = []
    for own, saved in zip(groups, saved_groups, strict=True):
        missing = sorted(needed - set(saved))
        if missing or saved.get("decoupled_weight_decay") is False:
            what = f"a group lacks {', '.join(missing)}" if missing else "it was torch.optim.Adam"
            raise ValueError(
                f"the state dict was saved by another optimizer ({what}); expected one of {name}, or of its "
                "namesake in torch.optim. Load it into the class that wrote it"
            )
        steps = [float(states[i].get(STEP, 0)) for i in saved["params"] if states.get(i)]
        peak = max(float(saved["lr"]), float(saved.get("initial_lr", 0)))
        new = {**own, **saved, "k": int(max(steps, default=0)), "lr_max": peak}
        algorithm.hyper_row(new)  # refuses what cannot be
        converted.append(new)
    return converted


def unsettled_state(
    param: Tensor, buffers: Sequence[str], saved: Mapping[str, Any], index: object
) -> TensorState:
    """The state of one parameter, without a ``master_param``: the parameter may be loaded after it.

    Raises:
        ValueError: other keys or shapes.
    """
    others = of_others(param, saved, ("z", *BUFFERS, STEP))
    own = {key for key in saved if key not in others and saved[key] is not None}
    if not own and (buffers or "momentum_buffer" not in saved):  # it has not begun
        return others
    kept = sorted(own - {STEP})
    if begun_otherwise(buffers, kept) or (STEP not in own and "exp_avg" in buffers):
        raise ValueError(
            f"the state of parameter {index} has the keys {sorted(map(str, saved))}; expected "
            f"{sorted((*buffers, STEP))}, as torch.optim saves them"
        )
    state: TensorState = {}
    for name in kept:
        value = saved[name]
        if value.shape != param.shape:
            raise ValueError(
                f"{name} of parameter {index} has shape {tuple(value.shape)}; expected "
                f"{tuple(param.shape)}"
            )
        part = torch.empty_like(local(param).detach(), dtype=state_dtype(param.dtype))
        state[name] = as_part_of(part.copy_(placed_as(value, param)), param)
    # torch does not count the steps of SGD: a momentum that there is has begun
    step = float(saved[STEP]) if STEP in own else float(bool(kept))
    state[STEP] = torch.tensor(step, dtype=torch.float64, device=param.device)
    return {**state, **others}


def torch_state_dict(
    algorithm: Algorithm, saved: Mapping[str, Any], params: Sequence[Tensor]
) -> dict[str, Any]:
    """A state dict for the class of torch.optim that has this one's name; its state is in full.

    Args:
        saved: the optimizer's own state dict.
        params: of all groups, in their order.

    Raises:
        ValueError: something is at work that torch's class does not have.
    """
    for number, group in enumerate(saved["param_groups"]):
        only_ours = ("normalized", "max_grad_norm", "row_norm")
        found = {name: group[name] for name in only_ours if group.get(name)}
        if found:
            raise ValueError(
                f"group {number} has {found}, which torch's class does not have: it would go on with other "
                "steps. Set it off before saving, if that is meant"
            )
    names = (
        *algorithm.upstream_arguments(),
        "maximize",
        "foreach",
        "fused",
        "capturable",
        "initial_lr",
        "params",
    )
    groups = [{n: group[n] for n in names if n in group} for group in saved["param_groups"]]
    states = {}
    for number, own in saved["state"].items():
        # a momentum without a step has not begun: torch's begins with its first gradient, and from nothing
        if has_own(own) and (moments := moments_of(own)) and float(own[STEP]) > 0:
            full = state_dtype(params[number].dtype)
            kept = {
                name: as_part_of(value.to(full), params[number]) for name, value in moments.items()
            }
            step = torch.as_tensor(float(own[STEP]), dtype=torch.float32)
            states[number] = {**({} if "momentum_buffer" in kept else {STEP: step}), **kept}
    return {"state": states, "param_groups": groups}
