"""``max_lr``, the cap on gamma: each group's own, under the warmup, and without it nothing has changed."""

from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    assert_same_bits,
    device_of,
    make_params,
    run,
    set_gradients,
    snapshot,
    steps_for,
    stream,
)
from torch import nn

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

SHAPES = [(7,), (33, 5), (0,), (257,)]
CAPS = (0.00093, 0.0005, None)
"""Of three groups: the first is now and then above its cap, the second always, the third never."""


def three_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    groups = [params[:1], params[1:2], params[2:]]
    factors = (1.0, 2.0, 0.5)
    return [
        {"params": group, "lr": 0.5 * factor, "max_lr": cap, "warmup_steps": 4}
        for group, factor, cap in zip(groups, factors, CAPS, strict=True)
    ]


def test_each_group_has_its_own_cap(backend: str) -> None:
    """Step by step beside the reference: gamma, whether it was capped, and what became of z."""
    params, truth = make_params(SHAPES, device=device_of(backend)), make_params(SHAPES)
    optimizer = AdamCScheduleFreePlus(three_groups(params), backend=backend, **EVERYTHING)
    reference = AdamCScheduleFreePlusReference(three_groups(truth), **EVERYTHING)
    optimizer.train()
    reference.train()
    seen: list[tuple[float, ...]] = []
    for k, (loss, gradients) in enumerate(stream(SHAPES, steps_for(backend, 40))):
        for ps in (params, truth):
            set_gradients(ps, gradients)
        optimizer.step(loss=loss)
        reference.step(loss=loss)
        figures = optimizer.metrics()
        warmup = min(1, (k + 1) / 4)
        expected = [
            warmup * min(group["lr"] * figures["polyak_lr"], group["max_lr"] or float("inf"))
            for group in reference.param_groups
        ]
        assert figures["scheduled_lr"] == pytest.approx(expected, rel=1e-12)
        assert expected == pytest.approx(
            [group["scheduled_lr"] for group in reference.param_groups], rel=1e-10
        )
        over = [
            float(group["lr"] * figures["polyak_lr"] > (group["max_lr"] or float("inf")))
            for group in reference.param_groups
        ]
        assert figures["capped"] == over
        seen.append(tuple(over))
    assert len(set(seen)) > 1  # the first group's cap bites in some steps only
    assert all(over[1:] == (1.0, 0.0) for over in seen)
    for mine, theirs in zip(params, truth, strict=True):
        z = optimizer.iterates(mine).z.cpu()
        torch.testing.assert_close(z, reference.state[theirs]["z"], rtol=1e-10, atol=1e-12)


def test_a_cap_that_is_never_reached_changes_no_bit(backend: str) -> None:
    states = []
    for arguments in ({}, {"max_lr": None}, {"max_lr": float("inf")}, {"max_lr": 1e6}):
        params = make_params(SHAPES, device=device_of(backend))
        optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING, **arguments)
        run(optimizer, params, 8)
        optimizer.param_groups[0]["max_lr"] = None
        states.append(snapshot(optimizer, params))
    for other in states[1:]:
        assert_same_bits(states[0], other)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_still(backend: str, loss: float) -> None:
    params = make_params(SHAPES, device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend, max_lr=0.01)
    run(optimizer, params, 2)
    before = [p.detach().clone() for p in params]
    optimizer.step(loss=loss)
    assert optimizer.metrics()["skipped_steps"] == 1
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_it_may_be_changed_and_is_saved() -> None:
    params = make_params(SHAPES)
    optimizer = AdamCScheduleFreePlus(params, lr=3.0)
    run(optimizer, params, 2)
    free = optimizer.metrics()
    assert free["capped"] == [0.0]
    optimizer.param_groups[0]["max_lr"] = free["scheduled_lr"][0] / 10
    run(optimizer, params, 1)
    assert optimizer.metrics()["scheduled_lr"] == [free["scheduled_lr"][0] / 10]
    assert optimizer.metrics()["capped"] == [1.0]
    other = AdamCScheduleFreePlus(params)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["max_lr"] == free["scheduled_lr"][0] / 10
