"""torch's own generic tests of optimizers, as far as they can be had for classes that are not torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import OptimizerInfo, OptimizerInput

import sfplus_kernels as ours


class Plus(ours.AdamCScheduleFreePlus):
    """With a loss of its own, for tests that give none."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure) if closure is not None else super().step(loss=1.0)


def inputs(*settings: dict[str, Any]) -> Any:
    """torch's form of a function that names arguments to test with."""

    def of_device(device: Any, dtype: Any = None) -> list[OptimizerInput]:
        return [OptimizerInput(params=None, kwargs=one, desc=str(one)) for one in ({}, *settings)]

    return of_device


def info(cls: type, *settings: dict[str, Any]) -> OptimizerInfo:
    return OptimizerInfo(cls, optim_inputs_func=inputs(*settings), optim_error_inputs_func=inputs())


TENSOR_LR = {"lr": torch.tensor(0.001)}
REGISTERED = [
    info(Plus, {"weight_decay": 1.0}, {"maximize": True, "f_star": 9.0}, TENSOR_LR),
    info(
        ours.AdamWScheduleFree,
        {"weight_decay": 0.1},
        {"inner_momentum": 0.9},
        {"maximize": True},
        TENSOR_LR,
    ),
    info(
        ours.SGDScheduleFree,
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "maximize": True},
        TENSOR_LR,
    ),
    info(ours.RAdamScheduleFree, {"weight_decay": 0.1}, {"silent_sgd_phase": False}, TENSOR_LR),
    info(ours.AdamWScheduleFreePaper, {"weight_decay": 0.1}, {"maximize": True}, TENSOR_LR),
    info(ours.AdamW, {"weight_decay": 0.1}, {"maximize": True, "capturable": True}, TENSOR_LR),
    info(ours.AdamC, {"weight_decay": 0.1}, {"maximize": True}, TENSOR_LR),
    info(
        ours.SGD,
        {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
        TENSOR_LR,
    ),
]
CASES = [
    pytest.param(one.optim_cls, given.kwargs, id=f"{one.optim_cls.__name__}-{given.desc}")
    for one in REGISTERED
    for given in one.optim_inputs_func(device="cpu")
]


def make(cls: type, settings: dict[str, Any], params: Any) -> Any:
    optimizer = cls(params, **copy.deepcopy(settings))
    optimizer.train()
    return optimizer


@pytest.mark.parametrize(("cls", "settings"), CASES)
class TestAsTorchDoes:
    """Each is what the test of the same name in torch's test_optim.py asks."""

    def two(self) -> list[nn.Parameter]:
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(5))]

    def steps(self, optimizer: Any, params: list, n: int = 4) -> None:
        for k in range(n):
            for p in params:
                p.grad = torch.full_like(p, 0.1 * (k + 1))
            optimizer.step()

    def test_param_groups_lr(self, cls: type, settings: dict) -> None:
        params = self.two()
        before = params[1].detach().clone()
        optimizer = make(
            cls,
            {k: v for k, v in settings.items() if k != "lr"},
            [
                {"params": params[:1]},
                {"params": params[1:], "lr": 0.0, "weight_decay": 0.0},
            ],
        )
        self.steps(optimizer, params)
        if cls is not Plus:  # whose floor of lr is eps
            assert torch.equal(params[1], before)

    def test_state_dict_deterministic(self, cls: type, settings: dict) -> None:
        params = self.two()
        optimizer = make(cls, settings, params)
        self.steps(optimizer, params)
        twins = copy.deepcopy(params)
        twin = make(cls, settings, twins)
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        self.steps(optimizer, params)
        self.steps(twin, twins)
        assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))

    def test_save_load_equality_with_weights_only(
        self, cls: type, settings: dict, tmp_path: Any
    ) -> None:
        params = self.two()
        optimizer = make(cls, settings, params)
        self.steps(optimizer, params)
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        assert str(saved) == str(optimizer.state_dict())

    def test_step_is_noop_when_params_have_no_grad(self, cls: type, settings: dict) -> None:
        params = self.two()
        before = copy.deepcopy(params)
        optimizer = make(cls, settings, params)
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))

    def test_deepcopy_copies_all_public_attrs(self, cls: type, settings: dict) -> None:
        optimizer = make(cls, settings, self.two())
        names = {name for name in dir(optimizer) if not name.startswith("_")}
        assert names == {name for name in dir(copy.deepcopy(optimizer)) if not name.startswith("_")}

    def test_non_empty_state(self, cls: type, settings: dict) -> None:
        params = self.two()
        optimizer = make(cls, settings, params)
        self.steps(optimizer, params)
        assert all(optimizer.state[p] for p in params)

    def test_post_hooks_and_pre_hooks(self, cls: type, settings: dict) -> None:
        params, order = self.two(), []
        # torch hooks the step of each class, so that of a class that calls its base's runs them twice
        plus = cls is Plus
        optimizer = make(ours.AdamCScheduleFreePlus if plus else cls, settings, params)
        optimizer.register_step_pre_hook(lambda *_: order.append("pre"))
        handle = optimizer.register_step_post_hook(lambda *_: order.append("post"))
        optimizer.step(lambda: torch.tensor(1.0))
        handle.remove()
        optimizer.step(lambda: torch.tensor(1.0))
        assert order == ["pre", "post", "pre"]

    def test_can_load_older_state_dict(self, cls: type, settings: dict) -> None:
        params = self.two()
        optimizer = make(cls, settings, params)
        self.steps(optimizer, params)
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            group.pop("maximize", None)
        other = make(cls, settings, params)
        other.load_state_dict(saved)
        self.steps(other, params, 1)

    def test_schedulers(self, cls: type, settings: dict) -> None:
        """As TestLRScheduler: a scheduler may be given any of them, whatever lr is."""
        params = self.two()
        optimizer = make(cls, settings, params)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, total_iters=4)
        self.steps(optimizer, params, 1)
        scheduler.step()
        self.steps(optimizer, params, 1)


@pytest.mark.parametrize("one", REGISTERED, ids=lambda one: one.optim_cls.__name__)
def test_torch_takes_the_registration(one: OptimizerInfo) -> None:
    """Its own way of naming them works, and its way of asking what is supported finds nothing amiss."""
    assert one.name == one.optim_cls.__name__
    assert one.supported_impls is not None
