"""Rows of a fixed norm: the references' trajectories, and what must hold of x, y and z after each step."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import (
    BACKENDS,
    assert_same_bits,
    device_of,
    make_params,
    set_gradients,
    stream,
)
from torch import Tensor

import sfplus_kernels as ours
from sfplus_kernels import reference
from sfplus_kernels.backends.native import _C

ON_ALL = pytest.mark.parametrize("backend", BACKENDS)
DECAYS = {"lr": 0.05, "weight_decay": 0.3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw, averaged": ("AdamWScheduleFree", {**DECAYS, "warmup_steps": 4}),
    "plus": ("AdamCScheduleFreePlus", {"lr": 5.0, "weight_decay": 3.0, "c_warmup": 1}),
    "plus, annealed": ("AdamCScheduleFreePlus", {"lr": 0.5, "sf_beta1_anneal_steps": 9, "r": 1.0}),
    "adamw with m, averaged": ("AdamWScheduleFree", {**DECAYS, "inner_momentum": 0.8}),
    "sgd, averaged": ("SGDScheduleFree", {**DECAYS, "momentum": 0.8}),
    "radam, averaged": ("RAdamScheduleFree", DECAYS),
    "paper, averaged": ("AdamWScheduleFreePaper", DECAYS),
    "adamw": ("AdamW", DECAYS),
    "adamc": ("AdamC", {**DECAYS, "max_lr": 0.1}),
    "sgd": ("SGD", {**DECAYS, "momentum": 0.8, "nesterov": True}),
    "sgd without momentum": ("SGD", DECAYS),
}
RARE = ("plus, annealed", "adamw with m, averaged", "radam, averaged", "paper, averaged", "adamc")
"""Whose direction another one has, too."""
SHAPES = [(0, 4), (5, 7), (7,), (3, 0), (2, 3, 2, 5), (1, 9), (6, 1), (257,), (3, 33)]


def few(backend: str, steps: int) -> int:
    return min(steps, 3) if backend == "triton" else steps


def groups_of(params: list[Any]) -> list[dict[str, Any]]:
    """Two norms, and what is free: the vectors among them."""
    rows = [p for p in params if p.dim() > 1]
    free = [p for p in params if p.dim() <= 1]
    return [
        {"params": rows[:3], "row_norm": 2.0},
        {"params": [*free, rows[3]]},
        {"params": rows[4:], "row_norm": 0.25, "lr": 0.02},
    ]


def take(optimizer: Any, params: list[Any], steps: int, **more: Any) -> Iterator[int]:
    """Steps of one stream, each of them to be looked at."""
    getattr(optimizer, "train", lambda: None)()
    plus = "Plus" in type(optimizer).__name__
    for k, (loss, gradients) in enumerate(stream([p.shape for p in params], steps, **more)):
        set_gradients(params, gradients)
        if plus:
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        yield k


def finish(optimizer: Any, params: list[Any], steps: int, **more: Any) -> None:
    for _ in take(optimizer, params, steps, **more):
        pass


def z_of(optimizer: Any, param: Any) -> Tensor:
    """Of what is not averaged, the weight itself in the precision in which it is kept."""
    if hasattr(optimizer, "iterates"):
        return optimizer.iterates(param).z
    return optimizer.state[param].get("master_param", param).detach()


def norms(tensor: Tensor) -> Tensor:
    return tensor.double().flatten(1).norm(dim=1)


@ON_ALL
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in RARE else c for c in CASES]
)
def test_the_references_trajectory(backend: str, case: str) -> None:
    """In float64, with late and missing gradients and a row of zeros, which stays."""
    name, arguments = CASES[case]
    params, others = make_params(SHAPES, device=device_of(backend)), make_params(SHAPES)
    mine = getattr(ours, name)(groups_of(params), backend=backend, **arguments)
    theirs = getattr(reference, f"{name}Reference")(groups_of(others), **arguments)
    start, steps = [p.detach().clone() for p in others], few(backend, 20)
    both = zip(
        take(mine, params, steps, missing=0.3),
        take(theirs, others, steps, missing=0.3),
        strict=True,
    )
    for _ in both:
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-12, atol=1e-13)
    assert all(not torch.equal(a, b) for a, b in zip(start, others, strict=True) if a.numel() > 9)
    for group in mine.param_groups:
        for p in group["params"]:
            if group["row_norm"] is not None and p.numel() and mine.state.get(p):
                wanted = torch.full((len(p),), group["row_norm"], dtype=torch.float64)
                torch.testing.assert_close(norms(z_of(mine, p)).cpu(), wanted, rtol=1e-14, atol=0)


@ON_ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["plus", "adamw, averaged", "sgd, averaged"])
def test_z_on_the_sphere_x_and_y_within(case: str, dtype: torch.dtype, backend: str) -> None:
    name, arguments = CASES[case]
    params = make_params([(5, 7), (3, 65)], dtype, device=device_of(backend))
    optimizer = getattr(ours, name)(params, row_norm=3.0, backend=backend, **arguments)
    shortest = 3.0
    for _ in take(optimizer, params, few(backend, 20)):
        for p in params:
            x, y, z = optimizer.iterates(p)
            three = torch.full((len(p),), 3.0, dtype=torch.float64)
            torch.testing.assert_close(norms(z).cpu(), three, rtol=1e-6, atol=0)
            assert max(norms(x).max(), norms(y).max()) <= 3 * (1 + 1e-6)
            shortest = min(shortest, float(norms(x).min()))
            assert torch.equal(y.to(dtype), p.detach())
    assert shortest < 3 * (1 - 1e-5)  # an average that is within, not on it


@ON_ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_adamw_with_a_projection_after_it(backend: str, dtype: torch.dtype) -> None:
    """In bfloat16 against a float32 copy, which ours keeps beside it."""
    params = make_params([(5, 7), (3, 2, 4)], dtype, device=device_of(backend))
    kept = torch.float32 if dtype == torch.bfloat16 else dtype
    others = [torch.nn.Parameter(p.detach().cpu().to(kept)) for p in params]
    mine = ours.AdamW(params, row_norm=1.5, backend=backend, **DECAYS)
    theirs = torch.optim.AdamW(others, **DECAYS)
    for _ in take(mine, params, few(backend, 25)):
        for p, q in zip(params, others, strict=True):
            assert p.grad is not None
            q.grad = p.grad.cpu().to(kept)
        theirs.step()
        near = (
            {"rtol": 1e-12, "atol": 1e-13}
            if dtype == torch.float64
            else {"rtol": 1e-4, "atol": 1e-5}
        )
        with torch.no_grad():
            for p, q in zip(params, others, strict=True):
                q.mul_(1.5 / q.flatten(1).norm(dim=1).view(-1, *[1] * (q.dim() - 1)))
                torch.testing.assert_close(z_of(mine, p).cpu(), q.detach(), **near)


@ON_ALL
def test_a_row_of_zeros_stays(backend: str) -> None:
    for name in ("SGD", "SGDScheduleFree"):
        param = make_params([(3, 5)], torch.float32, device=device_of(backend))[0]
        param.data[1] = 0
        optimizer = getattr(ours, name)([param], lr=0.1, row_norm=1.0, backend=backend)
        optimizer.train()
        for _ in range(2):
            param.grad = torch.ones_like(param)
            param.grad[1] = 0
            optimizer.step()
        assert param[1].tolist() == [0.0] * 5
        assert norms(z_of(optimizer, param)).tolist() == pytest.approx([1, 0, 1], rel=1e-6)


@ON_ALL
def test_decay_comes_before_and_has_no_effect_along_a_row(backend: str) -> None:
    """Of gradients that are zero nothing is left but the norm, whatever the decay."""
    param = make_params([(4, 9)], device=device_of(backend))[0]
    expected = 2 * param.detach() / param.detach().norm(dim=1, keepdim=True)
    optimizer = ours.AdamW([param], lr=0.1, weight_decay=5.0, row_norm=2.0, backend=backend)
    for _ in range(3):
        param.grad = torch.zeros_like(param)
        optimizer.step()
        torch.testing.assert_close(param.detach(), expected, rtol=1e-14, atol=1e-15)


@ON_ALL
@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGD"])
def test_layouts_in_memory(backend: str, name: str) -> None:
    """Where rows do not lie in one piece: transposed, with holes, channels last."""
    base = torch.randn(12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = base.reshape(5, 3, 4, 2).to(memory_format=torch.channels_last)
    device = device_of(backend)
    views = [base.to(device).t(), base.clone().to(device)[::2, 1::3], images.to(device)]
    params = [torch.nn.Parameter(v) for v in views]
    copies = [torch.nn.Parameter(v.detach().cpu().contiguous().clone()) for v in views]
    assert not params[0].is_contiguous()
    mine = getattr(ours, name)(params, lr=0.05, row_norm=1.0, backend=backend)
    theirs = getattr(reference, f"{name}Reference")(copies, lr=0.05, row_norm=1.0)
    finish(mine, params, few(backend, 5))
    finish(theirs, copies, few(backend, 5))
    for p, q in zip(params, copies, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("AdamWScheduleFree", torch.bfloat16),
        pytest.param("AdamWScheduleFree", torch.float32, marks=pytest.mark.slow),
        pytest.param("AdamW", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_same_bits_with_any_threads_and_instructions(name: str, dtype: torch.dtype) -> None:
    """Rows longer than what stays in a cache together, and short ones, of which many do."""
    before, isa = torch.get_num_threads(), _C.isa()
    found = []
    try:
        for count, instructions in [
            (1, isa),
            (3, isa),
            *((2, name) for name in _C.available_isas()),
        ]:
            torch.set_num_threads(count)
            _C.set_isa(instructions)
            params = make_params([(9, 5001), (20_000, 3), (700, 40)], dtype)
            optimizer = getattr(ours, name)(params, row_norm=2.0, backend="cpu")
            finish(optimizer, params, 2)
            state = [list(optimizer.state[p].values()) for p in params]
            found.append([[p.detach().clone() for p in params], state])
    finally:
        torch.set_num_threads(before)
        _C.set_isa(isa)
    assert len(found) > 2
    for other in found[1:]:
        assert_same_bits(found[0], other)


@ON_ALL
def test_a_skipped_step_projects_nothing(backend: str) -> None:
    param = make_params([(3, 4)], torch.float32, device=device_of(backend))[0]
    optimizer = ours.AdamWScheduleFree([param], row_norm=9.0, skip_nonfinite=True, backend=backend)
    optimizer.train()
    before = param.detach().clone()
    param.grad = torch.full_like(param, torch.inf)
    optimizer.step()
    assert optimizer.metrics()["skipped_steps"] == 1
    assert torch.equal(param.detach(), before)


def test_the_closure_form_is_the_same() -> None:
    """x between steps; the same z."""
    params, others = make_params([(5, 7)]), make_params([(5, 7)])
    mine = ours.SGDScheduleFreeClosure(params, lr=0.1, row_norm=2.0)
    theirs = reference.SGDScheduleFreeReference(others, lr=0.1, row_norm=2.0)
    theirs.train()
    for _, gradients in stream([(5, 7)], 10):
        mine.step(lambda g=gradients: set_gradients(params, g))
        set_gradients(others, gradients)
        theirs.step()
        x, y, z = (theirs.state[others[0]][name] for name in "xyz")
        for found, expected in zip(mine.iterates(params[0]), (x, y, z), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_turned_on_and_off_within_a_run() -> None:
    """What is written into a group holds from the next step on."""
    params, others = make_params([(5, 7)]), make_params([(5, 7)])
    mine, theirs = ours.AdamW(params, lr=0.1), reference.AdamWReference(others, lr=0.1)
    for norm in (None, 2.0, 3.0, None):
        for optimizer, own in ((mine, params), (theirs, others)):
            optimizer.param_groups[0]["row_norm"] = norm
            finish(optimizer, own, 2)
        torch.testing.assert_close(params[0].detach(), others[0].detach(), rtol=1e-12, atol=1e-13)


def test_a_saved_state_goes_on_and_an_older_one_loads() -> None:
    def made(row_norm: float | None) -> tuple[list[Any], Any]:
        params = make_params([(5, 7), (2, 3)], torch.float32)
        return params, ours.AdamWScheduleFree(params, lr=0.1, row_norm=row_norm)

    params, first = made(2.0)
    finish(first, params, 3)
    weights, saved = [p.detach().clone() for p in params], copy.deepcopy(first.state_dict())
    finish(first, params, 3, seed=2)
    others, second = made(None)
    second.load_state_dict(saved)
    assert second.param_groups[0]["row_norm"] == 2.0
    for p, value in zip(others, weights, strict=True):
        p.data.copy_(value)
    finish(second, others, 3, seed=2)
    assert_same_bits([p.detach() for p in params], [p.detach() for p in others])

    del saved["param_groups"][0]["row_norm"]
    _, third = made(None)
    third.load_state_dict(saved)
    assert third.param_groups[0]["row_norm"] is None


@pytest.mark.parametrize("name", ["AdamW", "AdamWScheduleFree"])
def test_it_is_not_lost_on_the_way_to_others(name: str) -> None:
    params = make_params([(5, 7)])
    optimizer = getattr(ours, name)(params, row_norm=2.0)
    finish(optimizer, params, 1)
    with pytest.raises(ValueError, match="row_norm"):
        optimizer.to_upstream_state_dict()


BAD: list[tuple[tuple[int, ...], dict[str, Any], type[Exception], str]] = [
    ((5, 7), {"row_norm": 0.0}, ValueError, r"row_norm is 0.0; expected a number in \(0, inf\)"),
    ((5, 7), {"row_norm": "initial"}, TypeError, "row_norm is a str"),
    ((7,), {"row_norm": 1.0}, ValueError, r"shape \(7,\) is in a group with a row_norm"),
]


@pytest.mark.parametrize(("shape", "arguments", "error", "message"), BAD)
def test_bad_arguments(shape: Any, arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ours.AdamWScheduleFree(make_params([shape], torch.float32), **arguments)
    params = make_params([shape])
    optimizer = ours.AdamWScheduleFree(params)
    finish(optimizer, params, 1)
    before = params[0].detach().clone()
    optimizer.param_groups[0].update(arguments)
    with pytest.raises(error, match=message):
        finish(optimizer, params, 1)
    assert torch.equal(params[0].detach(), before)
