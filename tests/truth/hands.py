"""Ways in which trainers, pruners, offloaders and people lay hands on an optimizer between two steps.

A hand is a function of an optimizer, or of whatever has ``param_groups`` and ``state`` like one, and the list
of its parameters, which it may change. ``LAYOUTS`` are of gradients, which each step has anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Hand = Callable[[Any, list[Tensor]], None]

HANDS: dict[str, Hand] = {}

KEYS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "displacement", "master_param")


def hand(function: Hand) -> Hand:
    HANDS[function.__name__] = function
    return function


def buffers_of(optimizer: Any, params: list[Tensor]) -> list[tuple[dict, str]]:
    """(state of a parameter, key) of all buffers of a parameter's shape."""
    states = [optimizer.state[p] for p in params if optimizer.state.get(p)]
    return [(state, key) for state in states for key in KEYS if key in state]


# -- state --------------------------------------------------------------------------------------------


@hand
def data_is_other_memory(optimizer: Any, params: list[Tensor]) -> None:
    """As trainers do that move state to another memory and back."""
    for p in params:
        for value in optimizer.state.get(p, {}).values():
            if isinstance(value, Tensor):
                value.data = value.detach().clone()


@hand
def tensors_are_replaced(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        state[key] = 0.5 * state[key].detach().clone()


@hand
def second_moment_begins_anew(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        if key == "exp_avg_sq":
            state[key] = torch.zeros_like(state[key])


@hand
def first_moment_is_cleared_in_place(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        if key == "exp_avg":
            state[key].zero_()


@hand
def steps_are_other_tensors(optimizer: Any, params: list[Tensor]) -> None:
    for p in params:
        if "step" in optimizer.state.get(p, {}):
            optimizer.state[p]["step"] = optimizer.state[p]["step"].detach().clone() + 5


@hand
def one_step_is_shared_by_all(optimizer: Any, params: list[Tensor]) -> None:
    begun = [p for p in params if "step" in optimizer.state.get(p, {})]
    for p in begun[1:]:
        optimizer.state[p]["step"] = optimizer.state[begun[0]]["step"].detach().clone()


@hand
def set_on_other_storage(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        state[key].set_(state[key].detach().clone())


@hand
def storage_is_freed_and_comes_back(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        storage = state[key].untyped_storage()
        values, size = state[key].detach().clone(), storage.nbytes()
        storage.resize_(0)
        keep = torch.empty(1000)  # so that the memory is another one
        storage.resize_(size)
        state[key].copy_(values)
        del keep


@hand
def shared_memory(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        state[key].share_memory_()


@hand
def state_tensors_are_swapped(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        torch.utils.swap_tensors(state[key], 2 * state[key].detach())


@hand
def another_layout_in_memory(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        value = state[key]
        if value.dim() == 2:
            state[key] = value.detach().t().contiguous().t()


@hand
def a_moment_of_another_dtype(optimizer: Any, params: list[Tensor]) -> None:
    for state, key in buffers_of(optimizer, params):
        if key == "exp_avg_sq":
            state[key] = state[key].to(torch.float32)


@hand
def two_moments_are_one(optimizer: Any, params: list[Tensor]) -> None:
    """One tensor under two keys: both are what it was, and then go their own ways."""
    for p in params:
        state = optimizer.state.get(p, {})
        if "exp_avg" in state and "exp_avg_sq" in state:
            state["exp_avg"] = state["exp_avg_sq"]


@hand
def state_is_popped(optimizer: Any, params: list[Tensor]) -> None:
    optimizer.state.pop(params[0], None)


@hand
def state_is_an_empty_dict(optimizer: Any, params: list[Tensor]) -> None:
    optimizer.state[params[0]] = {}


@hand
def all_state_is_cleared(optimizer: Any, params: list[Tensor]) -> None:
    optimizer.state.clear()


@hand
def state_is_another_dict(optimizer: Any, params: list[Tensor]) -> None:
    optimizer.state = defaultdict(dict, {p: dict(s) for p, s in reversed(optimizer.state.items())})


@hand
def others_keep_something_beside(optimizer: Any, params: list[Tensor]) -> None:
    optimizer.state[params[0]]["of an offloader"] = torch.ones(2)


# -- parameters ---------------------------------------------------------------------------------------


@hand
def parameters_have_other_memory(optimizer: Any, params: list[Tensor]) -> None:
    for p in params:
        p.data = p.detach().clone()


@hand
def parameters_are_written(optimizer: Any, params: list[Tensor]) -> None:
    for p in params:
        p.data.mul_(0.5)


@hand
def parameters_are_swapped(optimizer: Any, params: list[Tensor]) -> None:
    for p in params:
        p.grad = None
        torch.utils.swap_tensors(p, torch.nn.Parameter(0.5 * p.detach()))


@hand
def a_parameter_goes(optimizer: Any, params: list[Tensor]) -> None:
    if len(params) < 2:
        return
    gone = params.pop(1)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not gone]


@hand
def parameters_change_places(optimizer: Any, params: list[Tensor]) -> None:
    params.reverse()
    for group in optimizer.param_groups:
        group["params"].reverse()


@hand
def a_parameter_changes_group(optimizer: Any, params: list[Tensor]) -> None:
    first, last = optimizer.param_groups[0]["params"], optimizer.param_groups[-1]["params"]
    if first is not last and first:
        last.append(first.pop(0))
        params[:] = [p for group in optimizer.param_groups for p in group["params"]]


@hand
def a_parameter_comes(optimizer: Any, params: list[Tensor]) -> None:
    p = torch.nn.Parameter(torch.full_like(params[0], 0.25))
    optimizer.param_groups[0]["params"].insert(0, p)
    params.insert(0, p)


@hand
def rows_are_pruned(optimizer: Any, params: list[Tensor]) -> None:
    """As point-cloud and embedding trainers do: all state but the step is indexed by row."""
    _change_rows(optimizer, params, lambda value: value[::2].clone())


@hand
def rows_are_added(optimizer: Any, params: list[Tensor]) -> None:
    _change_rows(optimizer, params, lambda value: torch.cat([value, torch.zeros_like(value)]))


def _change_rows(optimizer: Any, params: list[Tensor], change: Callable[[Tensor], Tensor]) -> None:
    for number, p in enumerate(params):
        if p.dim() != 2:
            continue
        new = torch.nn.Parameter(change(p.detach()))
        if optimizer.state.get(p):
            state = optimizer.state.pop(p)
            optimizer.state[new] = {
                key: value if key == "step" else change(value) for key, value in state.items()
            }
        params[number] = new
        for group in optimizer.param_groups:
            group["params"] = [new if other is p else other for other in group["params"]]


@hand
def a_parameter_is_frozen(optimizer: Any, params: list[Tensor]) -> None:
    params[0].requires_grad_(False)


# -- groups -------------------------------------------------------------------------------------------


@hand
def a_group_goes(optimizer: Any, params: list[Tensor]) -> None:
    if any(group["params"] for group in optimizer.param_groups[1:]):
        gone = optimizer.param_groups.pop(0)["params"]
        params[:] = [p for p in params if not any(p is other for other in gone)]


@hand
def momentum_rests(optimizer: Any, params: list[Tensor]) -> None:
    """Of SGD without averages; its buffers stay."""
    for group in optimizer.param_groups:
        if "dampening" in group:
            group["momentum"] = 0.0


@hand
def momentum_begins_anew(optimizer: Any, params: list[Tensor]) -> None:
    for group in optimizer.param_groups:
        if "dampening" in group:
            group["momentum"] = 0.75
            for p in group["params"]:
                optimizer.state.get(p, {}).pop("momentum_buffer", None)


@hand
def groups_change_places(optimizer: Any, params: list[Tensor]) -> None:
    optimizer.param_groups.reverse()
    params[:] = [p for group in optimizer.param_groups for p in group["params"]]


@hand
def groups_are_copied(optimizer: Any, params: list[Tensor]) -> None:
    optimizer.param_groups[:] = [dict(group) for group in optimizer.param_groups]


@hand
def hyperparameters_change(optimizer: Any, params: list[Tensor]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1.25 * group["lr"]  # lowered, it would be warned of
        group["weight_decay"] = 0.125


# -- gradients ----------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "one number for all": lambda g: g.reshape(-1)[:1].expand(g.numel()).view(g.shape),
    "one row for all": lambda g: g[:1].expand_as(g) if g.dim() else g,
    "rows that overlap": lambda g: torch.as_strided(g, g.shape, (1,) * g.dim()),
    "every second of a longer one": lambda g: torch.stack([g, g + 1], -1)[..., 0],
    "columns first": lambda g: g.t().contiguous().t() if g.dim() == 2 else g,
    "behind others": lambda g: torch.cat([g.new_ones(3), g.reshape(-1)])[3:].view(g.shape),
    "sign put off": lambda g: torch._neg_view(-g),
}
"""Gradients as autograd and users make them: what they show counts, wherever it is in memory. Some of these
make another gradient of it."""
