"""How a loop tells of its loss: at the step, before it, in parts; by whom, and which one counts."""

import copy
from typing import Any

import pytest
import torch
from support import SHAPES, assert_same_bits, device_of, make_params, set_gradients, stream

from sfplus_kernels import AdamCScheduleFreePlus, SGDScheduleFree, add_loss, report_loss


class Wrapped:
    """As Accelerate's AcceleratedOptimizer and Lightning's LightningOptimizer hold theirs."""

    def __init__(self, optimizer: Any, name: str) -> None:
        setattr(self, name, optimizer)
        self.param_groups = optimizer.param_groups


@pytest.mark.parametrize("kind", ["float", "tensor", "wrapped", "wrapped twice"])
def test_reported_losses_make_their_weighted_mean(backend: str, kind: str) -> None:
    reported = AdamCScheduleFreePlus(params := make_params(device=device_of(backend)))
    given = AdamCScheduleFreePlus(others := make_params(device=device_of(backend)))
    for each in (reported, given):
        each.train()
    target: Any = reported
    if kind.startswith("wrapped"):
        target = Wrapped(reported, "optimizer")
    if kind == "wrapped twice":
        target = Wrapped(target, "_optimizer")
    for loss, gradients in stream(SHAPES, 4):
        for its in (params, others):
            set_gradients(its, gradients)
        for share, weight in ((0.5, 1.0), (2.0, 3.0)):
            value: Any = loss * share
            report_loss(target, torch.tensor(value) if kind == "tensor" else value, weight)
        reported.step()
        given.step(loss=(0.5 * loss * 1 + 2 * loss * 3) / 4)
    assert reported.metrics()["function_value"] == pytest.approx(1.625 * loss, rel=1e-6)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="got no loss.*report_loss"):
        reported.step()  # they count for one step only


def test_report_loss_refuses_what_needs_none() -> None:
    with pytest.raises(TypeError, match="got a SGD; expected an optimizer of sfplus_kernels"):
        report_loss(torch.optim.SGD(make_params([(3,)]), lr=0.1), 1.0)
    report_loss(SGDScheduleFree(make_params([(3,)])), 1.0)  # one loop for all classes
    optimizer = AdamCScheduleFreePlus(make_params([(3,)]))
    with pytest.raises(ValueError, match=r"loss has shape \(2,\)"):
        report_loss(optimizer, torch.ones(2))
    report_loss(optimizer, 1.0)
    assert copy.deepcopy(optimizer).loss_reports.take() is None
    assert optimizer.loss_reports.take() == 1.0


def test_parts_of_a_loss_are_added_up(backend: str) -> None:
    """add_loss: what backward() was called on, whatever it was divided by."""
    told = AdamCScheduleFreePlus(params := make_params(device=device_of(backend)))
    given = AdamCScheduleFreePlus(others := make_params(device=device_of(backend)))
    for each in (told, given):
        each.train()
    for loss, gradients in stream(SHAPES, 4):
        for its in (params, others):
            set_gradients(its, gradients)
        for part in (0.5 * loss, torch.tensor(0.25 * loss, dtype=torch.float64), 0.25 * loss):
            add_loss(told, part)
        told.step()
        given.step(loss=loss)
        assert told.metrics()["function_value"] == pytest.approx(loss)
    assert_same_bits([p.detach() for p in params], [p.detach() for p in others])


def test_which_loss_counts() -> None:
    """Given, else told of, else the closure's; what was told is for one step, whether it counted or not."""
    optimizer = AdamCScheduleFreePlus(params := make_params([(3,)]))
    optimizer.train()
    set_gradients(params, [torch.ones(3)])

    def step(expected: float, **arguments: Any) -> None:
        optimizer.step(**arguments)
        assert optimizer.metrics()["function_value"] == expected

    report_loss(optimizer, 2.0)
    step(5.0, loss=5.0)
    with pytest.raises(ValueError, match="got no loss"):
        optimizer.step()
    report_loss(optimizer, 2.0)
    step(2.0, closure=lambda: 7.0)
    step(7.0, closure=lambda: 7.0)
    add_loss(optimizer, 1.0)
    step(4.0, closure=lambda: add_loss(optimizer, 3.0))
    assert (
        optimizer.step(lambda: None, loss=6.0) is None
    )  # as trainers pass one that returns nothing
    assert optimizer.metrics()["function_value"] == 6.0
    add_loss(optimizer, 1.0)
    with pytest.raises(ValueError, match="by report_loss .* and by add_loss"):
        report_loss(optimizer, 1.0)
    optimizer.step()
    report_loss(optimizer, 1.0)
    with pytest.raises(ValueError, match="by report_loss .* and by add_loss"):
        add_loss(optimizer, 1.0)
