"""follow(): x in whatever is saved, whichever is saved first, and a run that resumes is the same."""

import copy
import pickle

import pytest
import torch
from followed import KINDS, MAKERS, loss_of, pair, train
from libraries import held, iterate, net, same
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.swa_utils import AveragedModel

from sfplus_kernels import AdamWScheduleFree, follow


@KINDS
def test_what_is_saved_is_x_whichever_is_saved_first(kind: str) -> None:
    model, optimizer = pair(kind)
    for save_first in (model, optimizer):
        train(model, optimizer, 0, 3)
        x = iterate(model, optimizer)
        y = held(model)
        save_first.state_dict()
        saved, state = model.state_dict(), optimizer.state_dict()
        assert saved.keys() == x.keys()
        assert same(saved, x)
        assert not same(saved, y)
        groups = [group.get("averaging", group) for group in state["param_groups"]]
        assert [group["train_mode"] for group in groups] == [False]
        assert state["param_groups"][0]["param_names"] == [n for n, _ in model.named_parameters()]


@KINDS
@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("followed", ["before", "after"])
def test_resume_is_exact(kind: str, order: str, followed: str) -> None:
    model, optimizer = pair(kind)
    train(model, optimizer, 0, 3)
    files = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, 6)

    resumed = net(seed=9)
    again = MAKERS[kind](resumed)
    if followed == "before":
        follow(resumed, again)
    loads = [
        lambda: resumed.load_state_dict(files[0]),
        lambda: again.load_state_dict(files[1]),
    ]
    for load in loads if order == "model first" else reversed(loads):
        load()
    if followed == "after":
        follow(resumed, again)
    train(resumed, again, 3, 6)
    for which in "xyz":
        assert same(iterate(resumed, again, which), iterate(model, optimizer, which))


def test_a_checkpoint_in_train_mode_resumes_too() -> None:
    """One that was saved before follow() was in use, the optimizer loaded before the model."""
    model = net()
    optimizer = MAKERS["adamw"](model)
    optimizer.train()
    train(model, optimizer, 0, 3)
    files = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, 6)
    resumed = net(seed=9)
    again = MAKERS["adamw"](resumed)
    follow(resumed, again)
    again.load_state_dict(files[1])
    resumed.load_state_dict(files[0])
    train(resumed, again, 3, 6)
    assert same(held(resumed), held(model))


def test_loaded_weights_are_x() -> None:
    """As trainers load the best checkpoint into a model at the end of a run."""
    model, optimizer = pair("plus")
    train(model, optimizer, 0, 4)
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, 4, 8)  # y is in the model now
    model.load_state_dict(best)
    model.eval()
    loss_of(model, 50)
    assert same(held(model), best)


def test_averaged_state_dict_is_that_of_x() -> None:
    model, optimizer = pair("plus")
    train(model, optimizer, 0, 3)
    x = iterate(model, optimizer)
    assert same(optimizer.averaged_state_dict(model), x)


def test_saving_between_backward_and_step() -> None:
    results = []
    for save in (False, True):
        model, optimizer = pair("adamw")
        train(model, optimizer, 0, 3)
        model.state_dict()
        model.train()
        loss_of(model, 3).backward()
        if save:
            x = iterate(model, optimizer)
            assert same(model.state_dict(), x)
        optimizer.step()
        results.append(held(model))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_copies_and_pickles_are_not_followed() -> None:
    model, optimizer = pair("plus")
    ema = AveragedModel(model)
    train(model, optimizer, 0, 3)
    y = held(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), ema.module):
        other.eval()
        before = held(other)
        loss_of(other, 50)
        other.state_dict()
        assert same(held(other), before)
        assert same(held(model), y)  # nor does the copy move the model
    ema.update_parameters(model)


def test_names_do_not_stay_in_the_groups() -> None:
    """torch refuses a group without names beside one with names: a layer that is unfrozen later."""
    model = net()
    optimizer = AdamWScheduleFree(model[0].parameters(), lr=0.1)
    follow(model, optimizer)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["param_names"] == ["0.weight", "0.bias"]
    optimizer.load_state_dict(state)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    names = [group["param_names"] for group in optimizer.state_dict()["param_groups"]]
    assert names == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]


@KINDS
def test_a_loader_that_has_the_state_made_takes_no_step(kind: str) -> None:
    """As torch.distributed.checkpoint does before it loads, and before it saves a new run."""
    model, optimizer = pair(kind)
    before = held(model)
    get_optimizer_state_dict(model, optimizer)
    assert same(held(model), before)
    groups = optimizer.state_dict()["param_groups"]
    assert groups[0].get("averaging", groups[0])["k"] == 0
