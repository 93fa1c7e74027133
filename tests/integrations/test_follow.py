"""follow(): y in training forwards, x in evaluation forwards; what it takes and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from followed import KINDS, MAKERS, batch, loss_of, pair, train
from libraries import N_CLASSES, held, iterate, net, same
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from sfplus_kernels import AdamW, AdamWScheduleFree, AdamWScheduleFreeClosure, follow


@KINDS
def test_the_parameters_follow_the_mode(kind: str) -> None:
    model = net()
    optimizer = MAKERS[kind](model)
    by_hand = copy.deepcopy(model)
    other = MAKERS[kind](by_hand)
    follow(model, optimizer)
    other.train()
    for first in (0, 4):
        train(model, optimizer, first, first + 4)
        train(by_hand, other, first, first + 4)
        assert same(held(model), iterate(model, optimizer, "y"))
        model.eval()
        other.eval()
        assert torch.equal(loss_of(model, 50), loss_of(by_hand.eval(), 50))
        assert same(held(model), iterate(model, optimizer))
        assert not same(iterate(model, optimizer), iterate(model, optimizer, "y"))
        other.train()
    train(model, optimizer, 8, 9)
    train(by_hand, other, 8, 9)
    assert same(held(model), held(by_hand))


def test_training_in_evaluation_mode_raises() -> None:
    model, optimizer = pair("plus")
    train(model, optimizer, 0, 3)
    model.eval()
    loss = loss_of(model, 3)
    loss.backward()
    before = held(model)
    with pytest.raises(RuntimeError, match="gradients were taken at x.*model.train()"):
        optimizer.step(loss=loss)
    assert same(held(model), before)
    optimizer.zero_grad()
    train(model, optimizer, 3, 5)
    model.eval()
    loss_of(model, 50)  # a validation that forgot torch.no_grad()
    train(model, optimizer, 5, 7)


def test_a_closure_that_ends_in_evaluation_raises() -> None:
    for name in ("plus", "adamw"):
        model, optimizer = pair(name)
        train(model, optimizer, 0, 3)
        model.eval()

        def closure(model: nn.Module = model) -> Tensor:
            loss = loss_of(model, 3)
            loss.backward()
            return loss

        with pytest.raises(RuntimeError, match="in eval mode"):
            optimizer.step(closure)


def test_training_mode_without_gradients_changes_nothing() -> None:
    """BatchNorm's statistics of x, as the README gathers them."""
    model = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, N_CLASSES))
    optimizer = MAKERS["plus"](model)
    follow(model, optimizer)
    train(model, optimizer, 0, 3)
    x = iterate(model, optimizer)
    with optimizer.averaged():
        update_bn([batch(k)[0] for k in range(3)], model)
        assert same(held(model), x)


def test_a_second_optimizer_takes_over() -> None:
    """One that is gone, and one that is not: only the last one moves the parameters."""
    model = net()
    first = MAKERS["adamw"](model)
    follow(model, first)
    train(model, first, 0, 3)
    second = MAKERS["plus"](model)
    follow(model, second)
    train(model, second, 0, 3)
    y = held(model)
    first.eval = first.train = None  # whoever calls them fails
    model.eval()
    loss_of(model, 50)
    assert not same(held(model), y)
    del second
    before = held(model)
    model.train()
    loss_of(model, 0)
    assert same(held(model), before)


def test_two_optimizers_of_two_parts() -> None:
    model = net()
    parts = [AdamWScheduleFree(part.parameters(), lr=0.1) for part in (model[0], model[2])]
    for optimizer in parts:
        follow(model, optimizer)
    model.train()
    for k in range(3):
        loss_of(model, k).backward()
        for optimizer in parts:
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    loss_of(model, 50)
    for part, optimizer in zip((model[0], model[2]), parts, strict=True):
        assert same(held(part), iterate(part, optimizer))


def test_remove() -> None:
    model = net()
    optimizer = MAKERS["plus"](model)
    handle = follow(model, optimizer)
    train(model, optimizer, 0, 3)
    handle.remove()
    y = held(model)
    model.eval()
    loss_of(model, 50)
    model.state_dict()
    state = optimizer.state_dict()
    assert same(held(model), y)
    assert state["param_groups"][0]["train_mode"]
    assert "param_names" not in state["param_groups"][0]


def test_the_closure_forms_may_be_followed() -> None:
    model = net()
    optimizer = AdamWScheduleFreeClosure(model.parameters(), lr=0.1)
    follow(model, optimizer)
    model.train()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert same(model.state_dict(), iterate(model, optimizer))


def test_refusals() -> None:
    model = net()
    with pytest.raises(TypeError, match="got a SGD, which has no train"):
        follow(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(ValueError, match="none of this Sequential's parameters"):
        follow(copy.deepcopy(model), MAKERS["plus"](model))


def test_compiled(compile_counter: Any) -> None:
    """Followed before or after torch.compile: one graph, the same numbers."""
    for outside in (False, True):
        torch._dynamo.reset()
        compile_counter.clear()
        model, plain = net(), net()
        optimizer, other = MAKERS["plus"](model), MAKERS["plus"](plain)
        compiled = torch.compile(model, backend=compile_counter)
        follow(compiled if outside else model, optimizer)
        follow(plain, other)
        for k in range(3):
            train(compiled, optimizer, k, k + 1)
            train(plain, other, k, k + 1)
            for each in (compiled, plain):
                each.eval()
                with torch.no_grad():
                    loss_of(each, 50)
        assert same(held(model), held(plain))
        assert same(held(model), iterate(model, optimizer))
        # one for training, one for evaluation, with all that the forward does
        assert compile_counter.operations() == [3, 3]


@pytest.fixture
def compile_counter() -> Any:
    class Counter:
        def __init__(self) -> None:
            self.graphs: list[int] = []

        def clear(self) -> None:
            self.graphs.clear()

        def operations(self) -> list[int]:
            return self.graphs

        def __call__(self, graph: Any, inputs: Any) -> Any:
            self.graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
            return graph.forward

    return Counter()


def test_one_that_averages_nothing_is_followed_too() -> None:
    """The weights are the weights, also for gradients that were taken in evaluation mode."""
    runs = []
    for followed in (False, True):
        model = net()
        optimizer = AdamW(model.parameters(), lr=0.1)
        if followed:
            follow(model, optimizer)
        train(model, optimizer, 0, 3)
        loss_of(model.eval(), 3).backward()
        optimizer.step()
        assert same(dict(model.state_dict()), held(model))
        runs.append(held(model))
    assert same(*runs)
