"""One training loop serves all classes, and an optimizer says in short what it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import assert_same_bits, device_of
from torch import nn

import sfplus_kernels
from sfplus_kernels import (
    SGD,
    AdamC,
    AdamCScheduleFreePlus,
    AdamW,
    AdamWScheduleFree,
    AdamWScheduleFreePaper,
    RAdamScheduleFree,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    SGDScheduleFreeClosure,
)


def wrapped_adam(params: Any, **arguments: Any) -> ScheduleFreeWrapper:
    return ScheduleFreeWrapper(torch.optim.Adam(params, lr=0.01), **arguments)


def plus(params: Any, **arguments: Any) -> AdamCScheduleFreePlus:
    return AdamCScheduleFreePlus(params, lr=0.1, **arguments)


WITHOUT_A_LOSS = [
    AdamWScheduleFree,
    AdamWScheduleFreePaper,
    RAdamScheduleFree,
    SGDScheduleFree,
    wrapped_adam,
    AdamW,
    AdamC,
    SGD,
]


def train(
    make: Callable[..., Any],
    backend: str,
    step: Callable[[Any, torch.Tensor], Any] = lambda optimizer, loss: optimizer.step(loss=loss),
) -> tuple[list[Any], list[nn.Parameter]]:
    """What the steps returned, and the parameters in eval mode."""
    torch.manual_seed(0)
    device = device_of(backend)
    model = nn.Linear(3, 2).to(device)
    optimizer = make(model.parameters(), backend=backend)
    returned = []
    for epoch in range(2):
        optimizer.train(True)
        for k in range(3):
            optimizer.zero_grad()
            loss = (model(torch.ones(4, 3, device=device)) - k - epoch).square().mean()
            loss.backward()
            returned.append(step(optimizer, loss.detach()))
        optimizer.train(False)
        assert optimizer_mode(optimizer) == (make in (AdamW, AdamC, SGD))  # which have no modes
    return returned, list(model.parameters())


def optimizer_mode(optimizer: Any) -> bool:
    group = getattr(optimizer, "_averaging", optimizer).param_groups[0]
    return bool(group["train_mode"])


@pytest.mark.parametrize("make", WITHOUT_A_LOSS, ids=lambda make: make.__name__)
def test_a_loss_that_is_not_needed_changes_nothing(backend: str, make: Callable[..., Any]) -> None:
    given, params = train(make, backend)
    nothing, same = train(make, backend, lambda optimizer, loss: optimizer.step())
    both, also = train(
        make, backend, lambda optimizer, loss: optimizer.step(loss=loss, clip_coef=0.5)
    )
    assert_same_bits(params, same)
    assert_same_bits(params, also)
    assert nothing == [None] * 6
    assert given == both


def test_the_loss_comes_back_from_every_class(backend: str) -> None:
    for make in (plus, *WITHOUT_A_LOSS):
        returned, _ = train(make, backend, lambda o, loss: (o.step(loss=loss), loss))
        assert all(found is loss for found, loss in returned)
        returned, _ = train(make, backend, lambda o, loss: (o.step(lambda: loss), loss))
        assert all(found is loss for found, loss in returned)


def test_a_closure_form_takes_a_loss_beside_its_closure(backend: str) -> None:
    param = nn.Parameter(torch.ones(3, device=device_of(backend)))
    optimizer = SGDScheduleFreeClosure([param], lr=0.1, backend=backend)

    def closure() -> float:
        param.grad = torch.ones_like(param)
        return 7.0

    optimizer.train(False)
    assert optimizer.step(closure, loss=3.0) == 7.0
    with pytest.raises(ValueError, match="got no closure"):
        optimizer.step(loss=3.0)
    assert float(param.detach().max()) < 1


# -- what it says of itself ---------------------------------------------------------------------------


def test_the_backend_has_a_name(backend: str) -> None:
    params = [nn.Parameter(torch.ones(3, device=device_of(backend)))]
    for make in (plus, *WITHOUT_A_LOSS):
        assert make(params, backend=backend).backend == backend
    assert AdamWScheduleFree(params).backend != "eager"  # there is a quicker one here


def test_repr_is_short() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": torch.tensor(0.25)}]
    optimizer = AdamCScheduleFreePlus(groups, weight_decay=5.0)
    assert repr(optimizer).splitlines() == [
        "AdamCScheduleFreePlus (backend not chosen yet, eval mode)",
        "    group 0, 2 parameters: lr=1.0, weight_decay=5.0",
        "    group 1, 1 parameters: lr=0.25, weight_decay=5.0",
    ]
    optimizer.train()
    params[0].grad = torch.ones(3)
    optimizer.step(loss=1.0)
    assert repr(optimizer).splitlines()[0] == "AdamCScheduleFreePlus (backend cpu, train mode)"
    assert len(repr(optimizer).splitlines()) == 3  # nothing of the run state
    without = SGD(params, lr=0.1, momentum=0.9, backend="eager")
    said = "    group 0, 3 parameters: lr=0.1, momentum=0.9"
    assert repr(without).splitlines() == ["SGD (backend eager)", said]


def test_repr_of_the_wrapper() -> None:
    optimizer = wrapped_adam([nn.Parameter(torch.ones(3))], momentum=0.8, backend="eager")
    first, second = repr(optimizer).splitlines()
    assert first == "ScheduleFreeWrapper around Adam (backend eager, eval mode)"
    assert "momentum=0.8" in second


def test_repr_does_not_wait_for_a_device() -> None:
    lr = torch.tensor(0.25, device="meta")
    optimizer = AdamWScheduleFree([nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["lr"] = lr
    assert "lr='a tensor on meta'" in repr(optimizer)


@pytest.mark.parametrize("make", [plus, AdamWScheduleFree, SGDScheduleFreeClosure, AdamC])
def test_tab_completion_offers_what_is_for_users(make: Callable[..., Any]) -> None:
    optimizer = make([nn.Parameter(torch.ones(3))])
    found = {name for name in dir(optimizer) if not name.startswith("_")}
    found -= {*dir(torch.optim.Optimizer), "defaults", "param_groups", "state"}
    expected = {
        "averaged",
        "averaged_state_dict",
        "backend",
        "eval",
        "metrics",
        "monitor_drift",
        "state_dict_in",
        "state_formats",
        "train",
    }
    expected |= set() if make is AdamC else {"iterates"}
    expected |= {"to_upstream_state_dict"} | ({"step_func"} if make is plus else set())
    assert found == expected


def test_the_package_offers_what_it_exports() -> None:
    found = {name for name in dir(sfplus_kernels) if not name.startswith("_")}
    assert found == {name for name in sfplus_kernels.__all__ if not name.startswith("_")}
