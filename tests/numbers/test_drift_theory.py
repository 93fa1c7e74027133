"""What the drift monitor shows, against what theory predicts of the steady state."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import torch
from support import make_params

from sfplus_kernels import (
    SGD,
    AdamC,
    AdamCScheduleFreePlus,
    AdamW,
    AdamWScheduleFree,
    SGDScheduleFree,
)


def test_the_papers_formula() -> None:
    """|g| / |x| = sqrt(2 lambda / gamma), and for AdamC what does not depend on gamma."""
    params = make_params([(7,)])
    params[0].grad = torch.ones_like(params[0])
    optimizer = SGD(params, lr=0.02, weight_decay=0.3)
    optimizer.monitor_drift()
    optimizer.step()
    figures = optimizer.metrics()
    assert figures["group_steady_grad_ratio"] == pytest.approx([math.sqrt(2 * 0.3 / 0.02)])
    assert figures["group_steady_update_ratio"] == pytest.approx([math.sqrt(2 * 0.3 * 0.02)])
    ratios = []
    for lr in (0.02, 0.01):
        optimizer = AdamC(params, lr=lr, max_lr=0.02, weight_decay=0.3, betas=(0.0, 0.9))
        optimizer.monitor_drift()
        optimizer.step()
        figures = optimizer.metrics()
        assert math.isnan(figures["group_steady_grad_ratio"][0])
        ratios.append(figures["group_steady_update_ratio"][0])
    # of a direction u of fixed size: |u| / |x| stays, and the step goes with gamma
    assert ratios[0] / 0.02 == pytest.approx(ratios[1] / 0.01)


SIMULATED: dict[str, tuple[Callable[[list], Any], int]] = {
    "SGD": (lambda p: SGD(p, lr=0.1, weight_decay=0.1), 400),
    "momentum": (lambda p: SGD(p, lr=0.1, weight_decay=0.04, momentum=0.8), 500),
    "dampening": (lambda p: SGD(p, lr=0.2, weight_decay=0.04, momentum=0.8, dampening=0.5), 500),
    "Nesterov": (lambda p: SGD(p, lr=0.1, weight_decay=0.04, momentum=0.8, nesterov=True), 500),
    "AdamW": (lambda p: AdamW(p, lr=0.01, weight_decay=1.0, betas=(0.8, 0.99)), 800),
    "Schedule-Free SGD, beta 0.5": (
        lambda p: SGDScheduleFree(p, lr=0.1, weight_decay=0.5, momentum=0.5),
        1500,
    ),
    "Schedule-Free SGD, beta 0.9": (
        lambda p: SGDScheduleFree(p, lr=0.1, weight_decay=0.5, momentum=0.9),
        3000,
    ),
    "Schedule-Free AdamW": (
        lambda p: AdamWScheduleFree(p, lr=0.01, weight_decay=2.0, betas=(0.9, 0.99)),
        3000,
    ),
    "ScheduleFree+": (
        lambda p: AdamCScheduleFreePlus(
            p, lr=0.05, weight_decay=10.0, betas=(0.8, 0.99), max_lr=0.05
        ),
        3000,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        name if steps <= 500 else pytest.param(name, marks=pytest.mark.slow)
        for name, (_, steps) in SIMULATED.items()
    ],
)
def test_steady_state_of_random_gradients(name: str) -> None:
    """Orthogonal to the weights and as large as the inverse of their norm: those of normalised weights."""
    make, steps = SIMULATED[name]
    generator = torch.Generator().manual_seed(0)
    numel = 500
    param = torch.nn.Parameter(torch.randn(numel, generator=generator, dtype=torch.float64) / 20)
    optimizer = make([param])
    optimizer.train()
    seen: dict[str, list[float]] = {}
    for k in range(steps):
        y = param.detach()
        noise = torch.randn(numel, generator=generator, dtype=torch.float64)
        noise -= y * (noise @ y) / (y @ y)
        param.grad = noise / y.norm() / math.sqrt(numel)
        if k == 3 * steps // 4:
            optimizer.monitor_drift()
        optimizer.step(loss=1e3)
        if k >= 3 * steps // 4:
            for key, value in optimizer.metrics().items():
                if key.startswith("group_"):
                    seen.setdefault(key, []).append(value[0])
    mean = {key: fmean(values) for key, values in seen.items()}
    assert mean["group_rotation"] == pytest.approx(mean["group_steady_update_ratio"], rel=0.05)
    assert mean["group_update_ratio"] == pytest.approx(mean["group_steady_update_ratio"], rel=0.05)
    if not math.isnan(mean["group_steady_grad_ratio"]):
        assert mean["group_grad_ratio"] == pytest.approx(mean["group_steady_grad_ratio"], rel=0.05)
