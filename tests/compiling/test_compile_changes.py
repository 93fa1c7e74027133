"""torch.compile: what may change between steps without being compiled again, or only once."""

import copy
from typing import Any

import pytest
import torch
from support import assert_same_bits
from torch import Tensor, nn
from traced_runs import (
    STEPS,
    Compiler,
    batches,
    each_gradient,
    make_model,
    training_step,
)

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    SGDScheduleFree,
    SharedStep,
)
from sfplus_kernels.compiling import operator

# Dynamo reads attributes that warn, and filters these warnings: as errors they would stop it.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("silence")]


# -- what changes between steps ---------------------------------------------------------------------


def test_checkpoint_in_the_middle(copying: Compiler) -> None:
    def reload(params: list, k: int, optimizer: Any) -> None:
        if k == 3:
            state = copy.deepcopy(optimizer.state_dict())
            assert state["param_groups"][0]["k"] == 3
            for p in params:  # which load_state_dict replaces
                optimizer.state[p]["exp_avg_sq"].fill_(float("nan"))
            optimizer.load_state_dict(state)

    _, calls = each_gradient(copying, AdamWScheduleFree, change=reload)
    assert calls == [1] * STEPS


def test_new_group_is_one_new_graph(compiler: Compiler) -> None:
    def grow(params: list, k: int, optimizer: Any) -> None:
        if k == 3:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))], "lr": 0.2})
        for group in optimizer.param_groups[1:]:
            group["params"][0].grad = torch.full((5,), 1.0 + k)

    _, calls = each_gradient(compiler, AdamCScheduleFreePlus, change=grow)
    assert calls == [1, 1, 1, 2, 2, 2]


def test_another_set_of_gradients_each_time(compiler: Compiler) -> None:
    """A few sets are compiled; the steps of further ones stay outside of the graph."""

    def drop(params: list, k: int, optimizer: Any) -> None:
        for bit, param in enumerate(params):
            if k >> bit & 1:
                param.grad = None

    _, calls = each_gradient(compiler, AdamCScheduleFreePlus, change=drop, steps=12)
    assert calls[-1] == operator.MAX_KINDS


def test_step_without_any_gradient(copying: Compiler) -> None:
    def drop(params: list, k: int, optimizer: Any) -> None:
        if k == 2:
            optimizer.zero_grad()

    optimizer, calls = each_gradient(copying, AdamCScheduleFreePlus, change=drop)
    assert optimizer.metrics()["k"] == STEPS - 1
    assert calls == [1] * STEPS


def test_many_tensors_stay_outside_of_the_graph(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that share their memory, about which an old torch is wrong."""

    def views_of_one_tensor() -> list:
        flat = torch.linspace(0, 1, 40)
        return [nn.Parameter(flat[:15]), nn.Parameter(flat[15:])]

    each_gradient(compiler, AdamCScheduleFreePlus, parameters=views_of_one_tensor)
    monkeypatch.setattr(operator, "MAX_TENSORS", 4 * 4 - 1)  # the empty tensor does not count
    each_gradient(compiler, AdamCScheduleFreePlus)
    assert not compiler.graphs
    monkeypatch.setattr(operator, "MAX_TENSORS", 4 * 4)
    each_gradient(compiler, AdamCScheduleFreePlus)
    assert len(compiler.operators) == 1


def test_hooks_and_subclasses_find_the_step_done(compiler: Compiler) -> None:
    """A hook after the step, and what a subclass does after it, read what the passes wrote."""
    seen: list[Tensor] = []

    def look(optimizer: Any, *_: Any) -> None:
        seen.append(optimizer.param_groups[0]["params"][0].detach().clone())

    class Looking(AdamWScheduleFree):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            look(self)
            return result

    def hooked(params: Any) -> AdamWScheduleFree:
        optimizer = AdamWScheduleFree(params)
        optimizer.register_step_post_hook(look)
        return optimizer

    for make in (hooked, Looking):
        seen.clear()
        each_gradient(compiler, make)
        assert_same_bits(seen[STEPS:], seen[:STEPS])
        assert not torch.equal(seen[-1], seen[-2])


def test_two_optimizers_in_one_step(copying: Compiler) -> None:
    models, optimizers = [make_model(), make_model()], []
    for model, make in zip(models, (AdamCScheduleFreePlus, SGDScheduleFree), strict=True):
        optimizers.append(make(model.parameters(), lr=0.1))
        optimizers[-1].train()
    both = [training_step(m, o) for m, o in zip(models, optimizers, strict=True)]
    step = copying.compile(lambda x, y: [train(x, y) for train in both])
    for x, y in batches(3):
        step(x, y)
    assert len(copying.operators) == 2
    expected = make_model()
    alone = SGDScheduleFree(expected.parameters(), lr=0.1)
    alone.train()
    for x, y in batches(3):
        training_step(expected, alone)(x, y)
    assert_same_bits(list(models[1].parameters()), list(expected.parameters()))


def test_optimizers_that_share_a_step(copying: Compiler) -> None:
    """Each takes the sums over the gradients of both, so their passes stay outside of the graph."""
    results = []
    for compiled in (False, True):
        model, shared = make_model(), SharedStep()
        optimizers = [
            AdamCScheduleFreePlus(layer.parameters(), lr=0.1, shared_step=shared)
            for layer in (model[0], model[2])
        ]
        for optimizer in optimizers:
            optimizer.train()

        def train(x: Tensor, y: Tensor, model: Any = model, optimizers: Any = optimizers) -> None:
            loss = (model(x) - y).square().mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step(loss=loss)
                optimizer.zero_grad()

        step = copying.compile(train) if compiled else train
        for x, y in batches(3):
            step(x, y)
        results.append([p.detach() for p in model.parameters()])
    assert copying.operators == []
    assert_same_bits(*results)


def test_figures_without_waiting_are_those_of_the_step_that_is_done(compiler: Compiler) -> None:
    model = make_model()
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1)
    optimizer.train()
    step = compiler.compile(training_step(model, optimizer))
    optimizer.metrics(wait=False)
    for k, (x, y) in enumerate(batches(4), start=1):
        step(x, y)
        assert optimizer.metrics(wait=False) == optimizer.metrics()
        assert optimizer.metrics()["k"] == k
