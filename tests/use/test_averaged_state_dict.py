"""``averaged_state_dict(model)``: x in place of the parameters, and nothing else is touched."""

import copy
import functools
from typing import Any

import pytest
import torch
from support import BACKENDS, EVERYTHING, assert_same_bits, device_of, set_gradients, stream
from support.family import FAMILY, groups_of, step_with
from torch import Tensor, nn

from sfplus_kernels import AdamCScheduleFreePlus, ScheduleFreeWrapper


class Model(nn.Module):
    """Tied weights, buffers, a frozen parameter, and one that the optimizer does not even have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.other = nn.Parameter(torch.randn(2), requires_grad=False)

    def forward(self, index: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embed(index)))
        return result

    def mine(self) -> list:
        return [p for p in self.parameters() if p is not self.other]


class Plus(AdamCScheduleFreePlus):
    """Takes a loss; here always the same."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(loss=1.0)


def make(kind: str, backend: str = "cpu", dtype: Any = torch.float32) -> tuple[Any, Model]:
    model = Model().to(device_of(backend), dtype)
    params = model.mine()
    if kind == "plus":
        return Plus(params, backend=backend, **{**EVERYTHING, "c_warmup": 0}), model
    if kind == "wrapper":
        base = torch.optim.AdamW(params, lr=0.02)
        return ScheduleFreeWrapper(base, 0.1, backend=backend), model
    member = FAMILY[kind]
    return member.ours(groups_of(params, kind), backend=backend, **member.everything), model


def train(optimizer: Any, model: Model, steps: int = 6, skip: int = 0) -> None:
    optimizer.train()
    params = [p for p in model.mine() if p.requires_grad]
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps)):
        if k >= skip:
            step_with(optimizer, functools.partial(set_gradients, params, gradients))


def copied(model: nn.Module, optimizer: Any) -> Any:
    return copy.deepcopy((dict(model.state_dict()), optimizer.state_dict()))


KINDS = [*FAMILY, "wrapper", "plus"]
CASES = [
    (backend, kind, dtype)
    for backend in BACKENDS
    for kind in KINDS
    for dtype in (torch.float32, torch.bfloat16)
    if backend == "cpu" or kind in ("adamw", "sgd closure")
]


@pytest.mark.parametrize(("backend", "kind", "dtype"), CASES)
def test_it_is_the_state_dict_under_eval(backend: str, kind: str, dtype: torch.dtype) -> None:
    optimizer, model = make(kind, backend, dtype)
    train(optimizer, model, 3 if backend == "triton" else 6)
    before = copied(model, optimizer)
    versions = [p._version for p in model.parameters()]
    shipped = optimizer.averaged_state_dict(model)
    assert [p._version for p in model.parameters()] == versions
    assert_same_bits(copied(model, optimizer), before)
    assert not any(value.requires_grad for value in shipped.values())

    optimizer.eval()
    expected = model.state_dict()
    assert list(shipped) == list(expected)
    assert_same_bits(dict(shipped), dict(expected))
    assert_same_bits(dict(optimizer.averaged_state_dict(model)), dict(expected))  # in eval mode too
    if "closure" not in kind and dtype == torch.float32:  # x and y may round to the same
        assert not torch.equal(shipped["embed.weight"], before[0]["embed.weight"])
    assert shipped["embed.weight"] is shipped["head.weight"]
    assert "norm.running_mean" in shipped
    for name, value in shipped.items():  # copies
        assert value.data_ptr() != expected[name].data_ptr(), name


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_into_another_model(kind: str) -> None:
    optimizer, model = make(kind)
    train(optimizer, model)
    other = Model()
    other.load_state_dict(optimizer.averaged_state_dict(model))
    optimizer.eval()
    index = torch.arange(6)
    assert torch.equal(other.eval()(index), model.eval()(index))


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_step_it_is_the_models(kind: str) -> None:
    optimizer, model = make(kind)
    assert_same_bits(dict(optimizer.averaged_state_dict(model)), dict(model.state_dict()))
    assert not optimizer.state


@pytest.mark.parametrize("kind", KINDS)
def test_backward_through_what_was_saved_before_it_works(kind: str) -> None:
    optimizer, model = make(kind)
    train(optimizer, model, 3)
    optimizer.train()
    for p in model.parameters():
        p.grad = None
    loss = model(torch.arange(6)).square().sum()
    optimizer.averaged_state_dict(model)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_as_without_it(kind: str) -> None:
    runs = [make(kind) for _ in range(2)]
    for number, (optimizer, model) in enumerate(runs):
        for k in range(6):
            train(optimizer, model, k + 1, skip=k)
            if number:
                optimizer.averaged_state_dict(model)
    assert_same_bits(copied(runs[0][1], runs[0][0]), copied(runs[1][1], runs[1][0]))
