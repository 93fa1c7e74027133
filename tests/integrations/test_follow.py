"""follow(): y in training forwards, x in evaluation forwards and in whatever is saved."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.swa_utils import AveragedModel, update_bn

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    ScheduleFreeWrapper,
    follow,
)


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def batch(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + k)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)


def loss_of(model: nn.Module, k: int) -> Tensor:
    inputs, target = batch(k)
    return (model(inputs) - target).square().mean()


def train(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    """As a trainer that knows nothing of modes."""
    model.train()
    for k in range(first, last):
        loss = loss_of(model, k)
        loss.backward()
        if isinstance(optimizer, AdamCScheduleFreePlus):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        optimizer.zero_grad()


MAKERS: dict[str, Callable[[nn.Module], Any]] = {
    "plus": lambda m: AdamCScheduleFreePlus(m.parameters(), lr=0.1, weight_decay=5.0),
    "adamw": lambda m: AdamWScheduleFree(m.parameters(), lr=0.02, weight_decay=0.1),
    "wrapper": lambda m: ScheduleFreeWrapper(torch.optim.RMSprop(m.parameters(), lr=0.01)),
}


@pytest.fixture(params=MAKERS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    model = make()
    return model, MAKERS[request.param](model)


def iterate(model: nn.Module, optimizer: Any, which: str) -> list[Tensor]:
    return [getattr(optimizer.iterates(p), which) for p in model.parameters()]


def held(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_the_parameters_follow_the_mode(pair: tuple[nn.Module, Any]) -> None:
    model, optimizer = pair
    by_hand = copy.deepcopy(model)
    other = MAKERS[
        {"AdamCScheduleFreePlus": "plus", "AdamWScheduleFree": "adamw"}.get(
            type(optimizer).__name__, "wrapper"
        )
    ](by_hand)
    follow(model, optimizer)
    other.train()
    for first in (0, 4):
        train(model, optimizer, first, first + 4)
        train(by_hand, other, first, first + 4)
        assert same(held(model), iterate(model, optimizer, "y"))
        model.eval()
        other.eval()
        assert torch.equal(loss_of(model, 50), loss_of(by_hand.eval(), 50))
        assert same(held(model), iterate(model, optimizer, "x"))
        assert not same(iterate(model, optimizer, "x"), iterate(model, optimizer, "y"))
        other.train()
    train(model, optimizer, 8, 9)
    train(by_hand, other, 8, 9)
    assert same(held(model), held(by_hand))


def test_what_is_saved_is_x_whichever_is_saved_first(pair: tuple[nn.Module, Any]) -> None:
    model, optimizer = pair
    follow(model, optimizer)
    for save_first in (model, optimizer):
        train(model, optimizer, 0, 3)
        x = iterate(model, optimizer, "x")
        y = held(model)
        save_first.state_dict()
        saved, state = model.state_dict(), optimizer.state_dict()
        assert same(list(saved.values()), x)
        assert not same(list(saved.values()), y)
        groups = [group.get("averaging", group) for group in state["param_groups"]]
        assert [group["train_mode"] for group in groups] == [False]
        assert state["param_groups"][0]["param_names"] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("followed", ["before", "after"])
def test_resume_is_exact(pair: tuple[nn.Module, Any], order: str, followed: str) -> None:
    model, optimizer = pair
    maker = next(m for m in MAKERS.values() if type(m(make())) is type(optimizer))
    follow(model, optimizer)
    train(model, optimizer, 0, 3)
    files = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, 6)

    resumed = make(seed=9)
    again = maker(resumed)
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
    model = make()
    optimizer = MAKERS["adamw"](model)
    optimizer.train()
    train(model, optimizer, 0, 3)
    files = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, 6)
    resumed = make(seed=9)
    again = MAKERS["adamw"](resumed)
    follow(resumed, again)
    again.load_state_dict(files[1])
    resumed.load_state_dict(files[0])
    train(resumed, again, 3, 6)
    assert same(held(resumed), held(model))


def test_loaded_weights_are_x() -> None:
    """As trainers load the best checkpoint into a model at the end of a run."""
    model = make()
    optimizer = MAKERS["plus"](model)
    follow(model, optimizer)
    train(model, optimizer, 0, 4)
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, 4, 8)  # y is in the model now
    model.load_state_dict(best)
    model.eval()
    loss_of(model, 50)
    assert same(held(model), list(best.values()))


def test_averaged_state_dict_is_that_of_x() -> None:
    model = make()
    optimizer = MAKERS["plus"](model)
    follow(model, optimizer)
    train(model, optimizer, 0, 3)
    x = iterate(model, optimizer, "x")
    assert same(list(optimizer.averaged_state_dict(model).values()), x)


def test_saving_between_backward_and_step() -> None:
    results = []
    for save in (False, True):
        model = make()
        optimizer = MAKERS["adamw"](model)
        follow(model, optimizer)
        train(model, optimizer, 0, 3)
        model.state_dict()
        model.train()
        loss_of(model, 3).backward()
        if save:
            x = iterate(model, optimizer, "x")
            assert same(list(model.state_dict().values()), x)
        optimizer.step()
        results.append(held(model))
    for plain, saved in zip(*results, strict=True):
        torch.testing.assert_close(plain, saved, rtol=1e-6, atol=1e-7)


def test_copies_and_pickles_are_not_followed() -> None:
    model = make()
    optimizer = MAKERS["plus"](model)
    follow(model, optimizer)
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


def test_training_in_evaluation_mode_raises() -> None:
    model = make()
    optimizer = MAKERS["plus"](model)
    follow(model, optimizer)
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
        model = make()
        optimizer = MAKERS[name](model)
        follow(model, optimizer)
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
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    optimizer = MAKERS["plus"](model)
    follow(model, optimizer)
    train(model, optimizer, 0, 3)
    x = iterate(model, optimizer, "x")
    with optimizer.averaged():
        update_bn([batch(k)[0] for k in range(3)], model)
        assert same(held(model), x)


def test_a_second_optimizer_takes_over() -> None:
    """One that is gone, and one that is not: only the last one moves the parameters."""
    model = make()
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
    model = make()
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
        assert same(held(part), iterate(part, optimizer, "x"))


def test_remove() -> None:
    model = make()
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
    model = make()
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
    assert same(list(model.state_dict().values()), iterate(model, optimizer, "x"))


def test_refusals() -> None:
    model = make()
    with pytest.raises(TypeError, match="got a SGD, which has no train"):
        follow(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(ValueError, match="none of this Sequential's parameters"):
        follow(copy.deepcopy(model), MAKERS["plus"](model))


def test_names_do_not_stay_in_the_groups() -> None:
    """torch refuses a group without names beside one with names: a layer that is unfrozen later."""
    model = make()
    optimizer = AdamWScheduleFree(model[0].parameters(), lr=0.1)
    follow(model, optimizer)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["param_names"] == ["0.weight", "0.bias"]
    optimizer.load_state_dict(state)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    names = [group["param_names"] for group in optimizer.state_dict()["param_groups"]]
    assert names == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]


def test_compiled(compile_counter: Any) -> None:
    """Followed before or after torch.compile: one graph, the same numbers."""
    for outside in (False, True):
        torch._dynamo.reset()
        compile_counter.clear()
        model, plain = make(), make()
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
        assert same(held(model), iterate(model, optimizer, "x"))
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


def test_a_loader_that_has_the_state_made_takes_no_step(pair: tuple[nn.Module, Any]) -> None:
    """As torch.distributed.checkpoint does before it loads, and before it saves a new run."""
    model, optimizer = pair
    follow(model, optimizer)
    before = held(model)
    get_optimizer_state_dict(model, optimizer)
    assert same(held(model), before)
    groups = optimizer.state_dict()["param_groups"]
    assert groups[0].get("averaging", groups[0])["k"] == 0
