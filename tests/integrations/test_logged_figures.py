"""What adapters log, and how they take over clipping: without any trainer."""

from typing import Any

import pytest
import torch
from support import make_params, run, set_gradients
from torch import nn

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, ScheduleFreeWrapper
from sfplus_kernels.integrations.clipping import take_over_clipping
from sfplus_kernels.integrations.figures import Figures, Late


def norm_of(tensors: Any) -> float:
    return float(torch.cat([t.detach().flatten() for t in tensors]).norm())


def test_figures_of_plus() -> None:
    optimizer = AdamCScheduleFreePlus(params := make_params([(5,), (3, 2)], torch.float32), lr=0.1)
    figures = Figures(optimizer)
    figures.read()  # from here on each step sends its own
    run(optimizer, params, 3)
    metrics, found = optimizer.metrics(), figures.read()
    assert found["gamma"] == metrics["scheduled_lr"][0]
    assert found["averaging_weight"] == metrics["ckp1"][0]
    assert found["capped"] == 0
    for name in ("polyak_lr", "grad_norm", "skipped_steps"):
        assert found[name] == metrics[name]
    assert found["weight_norm"] == pytest.approx(norm_of(params), rel=1e-6)


def test_whether_the_cap_held_gamma_down() -> None:
    params = make_params([(5,), (3, 2)], torch.float32)
    groups = [{"params": params[:1], "max_lr": 1e-9}, {"params": params[1:]}]
    optimizer = AdamCScheduleFreePlus(groups, lr=0.1)
    figures = Figures(optimizer)
    figures.read()
    run(optimizer, params, 1)
    found = figures.read()
    assert (found["capped/0"], found["capped/1"]) == (1, 0)
    assert found["gamma/0"] == pytest.approx(1e-9)


def test_figures_of_groups_and_of_gradients_that_nobody_looked_at() -> None:
    params = make_params([(5,), (3, 2)], torch.bfloat16)
    optimizer = AdamWScheduleFree(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], lr=0.1
    )
    optimizer.train()
    gradients = [torch.ones(5), torch.ones(3, 2)]
    set_gradients(params, gradients)
    figures = Figures(optimizer)
    figures.read()
    optimizer.step()
    found = figures.read()
    assert (found["gamma/0"], found["gamma/1"]) == pytest.approx((0.1, 0.5))
    assert found["averaging_weight"] == 1
    assert found["grad_norm"] == pytest.approx(11**0.5)
    assert found["weight_norm"] == pytest.approx(norm_of([p.float() for p in params]), rel=1e-5)
    optimizer.zero_grad()
    assert found["grad_norm"] == figures.read()["grad_norm"]  # the newest that there is


class Event:
    """A device that is not done yet."""

    done = False

    def query(self) -> bool:
        return self.done


def test_a_number_that_is_late_is_not_waited_for() -> None:
    late, event = Late(), Event()
    assert late.next(None) is None
    late._under_way = event, torch.tensor(3.0)
    assert late.next(torch.tensor(4.0)) is None
    event.done = True
    assert late.next(None) == 3.0
    assert late.next(torch.tensor(5.0)) == 5.0


def test_taking_over_clipping() -> None:
    optimizer = AdamCScheduleFreePlus(make_params([(3,)]))
    assert not take_over_clipping(optimizer, None)
    assert not take_over_clipping(optimizer, 0.0)
    assert take_over_clipping(optimizer, 1)
    assert optimizer.param_groups[0]["max_grad_norm"] == 1.0
    assert take_over_clipping(optimizer, 0.5)  # its own stays
    assert optimizer.param_groups[0]["max_grad_norm"] == 1.0
    base = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    assert not take_over_clipping(ScheduleFreeWrapper(base), 1.0)
