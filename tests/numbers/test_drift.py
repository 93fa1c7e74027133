"""The drift monitor on every backend: norms and rotations against explicit sequences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import (
    BACKENDS,
    EVERYTHING,
    SHAPES,
    assert_same_bits,
    device_of,
    make_params,
    set_gradients,
    steps_for,
    stream,
    two_groups,
)
from support.family import PLAIN as SCHEDULE_FREE
from support.family import groups_of
from support.plain import PLAIN, plain_groups
from torch import Tensor

from sfplus_kernels import SGD, AdamC, AdamCScheduleFreePlus, AdamW, AdamWScheduleFree, reference

NORMS = ("weight_norm", "grad_norm", "update_norm", "rotation", "grad_ratio", "update_ratio")
ALL = ["plus", *SCHEDULE_FREE, *PLAIN]


def made(name: str, params: list, backend: str | None, **more: Any) -> Any:
    """One of this package's classes, or without a backend the reference, in two groups."""
    if name == "plus":
        kind = (
            reference.AdamCScheduleFreePlusReference if backend is None else AdamCScheduleFreePlus
        )
        groups, arguments = two_groups(params), EVERYTHING
    else:
        member: Any = (SCHEDULE_FREE | PLAIN)[name]
        kind = member.reference if backend is None else member.ours
        groups = (groups_of if name in SCHEDULE_FREE else plain_groups)(params, name)
        arguments = member.everything
    return kind(groups, **arguments, **({} if backend is None else {"backend": backend}), **more)


def step(optimizer: Any, params: list, loss: float, gradients: list) -> None:
    set_gradients(params, gradients)
    if "Plus" in type(optimizer).__name__:
        optimizer.step(loss=loss)
    else:
        optimizer.step()


def explicit(old: list[Tensor], new: list[Tensor], gradients: list[Tensor | None]) -> list[float]:
    """Weight, gradient and update norm of some tensors as one vector, the angle, the two ratios."""
    kept = [n for n, g in enumerate(gradients) if g is not None]
    if not kept:
        return [math.nan] * len(NORMS)
    before, after, grad = (
        torch.cat([tensors[n].double().flatten() for n in kept])
        for tensors in (old, new, gradients)
    )
    size, moved, slope = after.norm(), (after - before).norm(), grad.norm()
    if size == 0:
        return [0.0, float(slope), float(moved), *[math.nan] * 3]
    # Kahan's formula, which is exact for small angles too
    a, b = before / before.norm(), after / size
    angle = 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))
    return [
        float(size),
        float(slope),
        float(moved),
        angle,
        float(slope / size),
        float(moved / size),
    ]


def check(
    figures: dict, expected: list[float], prefix: str, number: int, **tolerance: float
) -> None:
    found = [figures[f"{prefix}_{name}"][number] for name in NORMS]
    assert found == pytest.approx(expected, nan_ok=True, **tolerance), (prefix, number)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("backend", BACKENDS)
def test_figures_are_those_of_the_references_sequences(name: str, backend: str) -> None:
    """In float64, after every step, with empty tensors, missing gradients and two groups."""
    params, others = make_params(device=device_of(backend)), make_params()
    mine, oracle = made(name, params, backend), made(name, others, None)
    mine.monitor_drift("tensor")
    for optimizer in (mine, oracle):
        if hasattr(optimizer, "train"):
            optimizer.train()
    middle = len(params) // 2
    steps = min(steps_for(backend, 8), 3 if backend == "triton" else 8)
    for loss, gradients in stream(SHAPES, steps, missing=0.3):
        before = [p.detach().clone() for p in others]
        step(mine, params, loss, gradients)
        step(oracle, others, loss, gradients)
        after = [p.detach().clone() for p in others]
        figures = mine.metrics()
        for number in range(len(params)):
            one = slice(number, number + 1)
            expected = explicit(before[one], after[one], gradients[one])
            check(figures, expected, "tensor", number, rel=1e-8, abs=1e-8)
        for number, some in enumerate((slice(0, middle), slice(middle, None))):
            expected = explicit(before[some], after[some], gradients[some])
            check(figures, expected, "group", number, rel=1e-8, abs=1e-8)
    assert max(figures["group_rotation"]) > 1e-4  # no step proves nothing


FORMATS = [
    (torch.float32, "float32"),
    (torch.bfloat16, "float32"),
    (torch.float16, "float32"),
    (torch.float32, "16bit"),
    (torch.bfloat16, "16bit"),
    (torch.float32, "8bit"),
    (torch.bfloat16, "8bit"),
]


@pytest.mark.parametrize(("dtype", "state_format"), FORMATS)
@pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=pytest.mark.slow) if name == "triton" else name for name in BACKENDS],
)
def test_formats(dtype: torch.dtype, state_format: str, backend: str) -> None:
    """Of y as it is kept, and without another bit in anything."""
    runs: list[tuple[Any, list]] = []
    shapes = [(64, 33), (7,)]
    for per in ("tensor", None):
        params = make_params(shapes, dtype, device_of(backend))
        optimizer = AdamWScheduleFree(
            params,
            lr=0.02,
            inner_momentum=0.5,
            weight_decay=0.1,
            state_format=state_format,
            backend=backend,
        )
        optimizer.monitor_drift(per)
        optimizer.train()
        runs.append((optimizer, params))
    (mine, params), _ = runs
    for _, gradients in stream(shapes, 3):
        before = [mine.iterates(p)[1] for p in params]
        for optimizer, its in runs:
            set_gradients(its, gradients)
            optimizer.step()
        after, slopes = [mine.iterates(p)[1] for p in params], [p.grad for p in params]
        figures = mine.metrics()
        for number in range(2):
            one = slice(number, number + 1)
            expected = explicit(before[one], after[one], slopes[one])
            check(figures, expected, "tensor", number, rel=1e-5)
    (a, _), (b, _) = runs
    assert_same_bits([p.detach() for p in runs[0][1]], [p.detach() for p in runs[1][1]])
    assert_same_bits(a.state_dict(), b.state_dict())


def test_the_same_bits_on_any_number_of_threads() -> None:
    """And of a tensor that many chunks make up."""
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            params = make_params([(100_003,), (50, 3)], torch.float32)
            optimizer = AdamC(params, lr=0.02, backend="cpu")
            optimizer.monitor_drift("tensor")
            for _, gradients in stream([p.shape for p in params], 2):
                set_gradients(params, gradients)
                optimizer.step()
            found.append(optimizer.metrics())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    norm = float(params[0].detach().double().norm())
    assert found[0]["tensor_weight_norm"][0] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_step_leaves_the_figures_of_the_last_one(backend: str) -> None:
    params = make_params([(33, 5)], device=device_of(backend))
    optimizer = SGD(params, lr=0.1, skip_nonfinite=True, max_grad_norm=1.0, backend=backend)
    optimizer.monitor_drift()
    grad = torch.ones_like(params[0])
    params[0].grad = grad * math.inf
    optimizer.step()
    assert math.isnan(optimizer.metrics()["group_weight_norm"][0])
    params[0].grad = grad
    optimizer.step()
    figures = optimizer.metrics()
    assert figures["grad_norm"] == pytest.approx(math.sqrt(165))
    # of the gradient as the step took it
    assert figures["group_grad_norm"] == pytest.approx([1.0], rel=1e-5)
    assert figures["group_update_norm"] == pytest.approx([0.1], rel=1e-5)
    params[0].grad = grad * math.nan
    optimizer.step()
    after = optimizer.metrics()
    assert after["skipped_steps"] == 2
    assert after["group_update_norm"] == figures["group_update_norm"]


@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [AdamW, SGD])
def test_formats_without_averaging(
    make: Any, dtype: torch.dtype, state_format: str, backend: str
) -> None:
    """The compiled loops against plain torch operations, which read y as it is stored."""
    found = []
    for name in ("eager", backend):
        params = make_params([(40, 64), (7,)], dtype)
        more = {} if make is AdamW else {"momentum": 0.8, "weight_decay": 0.1}
        optimizer = make(params, lr=0.02, state_format=state_format, backend=name, **more)
        optimizer.monitor_drift("tensor")
        for _, gradients in stream([p.shape for p in params], 3):
            set_gradients(params, gradients)
            optimizer.step()
        found.append({k: v for k, v in optimizer.metrics().items() if k.startswith("tensor_")})
    expected, figures = found
    assert min(expected["tensor_rotation"]) > 1e-3
    for key, values in expected.items():
        assert figures[key] == pytest.approx(values, rel=1e-4, nan_ok=True), key


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
def test_rows_of_a_fixed_norm(backend: str) -> None:
    """Figures are of the step before rows are brought to their norm."""
    found = []
    for name in ("eager", backend):
        params = make_params([(6, 5), (9, 2)], device=device_of(name))
        optimizer = AdamWScheduleFree(params, lr=0.02, row_norm=1.0, backend=name)
        optimizer.monitor_drift("tensor")
        optimizer.train()
        for _, gradients in stream([p.shape for p in params], 2):
            set_gradients(params, gradients)
            optimizer.step()
        found.append({k: v for k, v in optimizer.metrics().items() if k.startswith("tensor_")})
    for key, values in found[0].items():
        assert found[1][key] == pytest.approx(values, rel=1e-9, nan_ok=True), key
    assert found[0]["tensor_weight_norm"] != pytest.approx([6**0.5, 9**0.5], rel=1e-6)
