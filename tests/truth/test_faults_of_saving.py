"""What users, trainers and tools do around saving and loading a state, one thing at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import schedulefree
import torch
from support import assert_same_bits, make_params
from support.family import FAMILY
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from truth import test_hands
from truth.test_hands import CLASSES, make, steps
from truth.trained import FAST, PLAIN, trained

import sfplus_kernels as ours


@pytest.mark.parametrize("name", [*PLAIN, "plus"])
def test_asking_for_the_state_before_the_first_step_changes_nothing(name: str) -> None:
    ends = []
    for asked in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        kind = ours.AdamCScheduleFreePlus if name == "plus" else FAMILY[name].ours
        optimizer = kind(model.parameters(), lr=0.01)
        optimizer.train()
        if asked:
            get_optimizer_state_dict(model, optimizer)
        for _ in range(12):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step(*([lambda: 2.0] if name == "plus" else []))
        assert optimizer.metrics()["k"] == 12
        ends.append([p.detach() for p in model.parameters()])
    assert_same_bits(*ends)


@pytest.mark.parametrize("name", ["adamw", "plus", "radam"])
@pytest.mark.parametrize("backend", FAST)
def test_inference_mode_right_after_loading(name: str, backend: str) -> None:
    optimizer, _ = trained(name, backend, torch.bfloat16)
    saved = copy.deepcopy(optimizer.state_dict())
    other, others = make(name, backend, torch.bfloat16)
    with torch.inference_mode():
        other.load_state_dict(saved)
        other.eval()
        other.train()
        with other.averaged():
            pass
    steps(other, others, 3, 5)
    other.eval()


@pytest.mark.parametrize("name", [*PLAIN, "plus"])
def test_keys_of_others_are_carried_along(name: str) -> None:
    optimizer, params = trained(name)
    optimizer.state[params[1]]["of an offloader"] = torch.arange(3.0)
    optimizer.state[params[2]]["note"] = "mine"
    other, others = make(name, "cpu", torch.float64)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[others[1]]["of an offloader"], torch.arange(3.0))
    assert other.state[others[2]]["note"] == "mine"
    steps(other, others, 3, 4)


@pytest.mark.parametrize("name", CLASSES)
def test_keys_of_others_alone_are_no_beginning(name: str) -> None:
    """Before the first step, when there is nothing of ours beside them."""

    def make(name: str, backend: str, dtype: torch.dtype) -> Any:
        if name != "wrapper":
            return test_hands.make(name, backend, dtype)
        params = make_params([(3,), (4, 3)], dtype)  # torch's AdamW cannot load this, its SGD can
        base = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        return ours.ScheduleFreeWrapper(base, backend=backend), params

    ends = []
    for notes in (False, True):
        optimizer, params = make(name, "cpu", torch.float64)
        if notes:
            optimizer.state[params[1]]["of an offloader"] = torch.arange(3.0)
        other, others = make(name, "cpu", torch.float64)
        other.load_state_dict(optimizer.state_dict())
        if notes:
            assert list(other.state[others[1]]) == ["of an offloader"]
        other.train()
        steps(other, others, 0, 3)
        assert ("of an offloader" in other.state[others[1]]) == notes
        ends.append([p.detach() for p in others])
    assert_same_bits(*ends)


@pytest.mark.parametrize("begun", [False, True])
def test_keys_of_others_in_states_of_upstream(begun: bool) -> None:
    upstream_params, params = make_params([(3,), (4,)]), make_params([(3,), (4,)])
    theirs = schedulefree.AdamWScheduleFree(upstream_params, foreach=False)
    optimizer = ours.AdamWScheduleFree(params)
    for one, its in ((theirs, upstream_params), (optimizer, params)):
        one.train()
        if begun:
            for p in its:
                p.grad = torch.ones_like(p)
            one.step()
        one.state[its[0]]["of an offloader"] = torch.arange(3.0)
    loaded = ours.AdamWScheduleFree(make_params([(3,), (4,)]))
    loaded.load_state_dict(theirs.state_dict())
    loaded.eval()
    state = loaded.state[loaded.param_groups[0]["params"][0]]
    assert torch.equal(state["of an offloader"], torch.arange(3.0))
    assert ("displacement" in state) == begun
    # and for upstream, which has no use for them
    saved = optimizer.to_upstream_state_dict()["state"]
    assert [set(state) for state in saved.values()] == ([{"z", "exp_avg_sq"}] * 2 if begun else [])


@pytest.mark.parametrize("name", [*PLAIN, "plus"])
def test_a_state_dict_without_an_option(name: str) -> None:
    """An older version did not know it: it is what it is by default."""
    optimizer, params = make(name, "cpu", torch.float64)
    optimizer = type(optimizer)(params, lr=0.1)
    optimizer.train()
    steps(optimizer, params, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    options = {"inner_momentum", "skip_nonfinite", "max_grad_norm", "f_star", "maximize"}
    for group in saved["param_groups"]:
        for option in options & set(group):
            del group[option]
    other = type(optimizer)(params, lr=0.1)
    other.load_state_dict(saved)
    assert options & set(optimizer.defaults) <= set(other.param_groups[0])
    steps(other, params, 2, 3)
