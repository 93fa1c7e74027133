"""Steps over state in 8 bits: against float64, the other backends, and other numbers of threads."""

import copy
import math
from typing import Any

import pytest
import torch
from support import BACKENDS, device_of, make_params, run, steps_for
from support.rounded_state import a_step_beside_float64, in_float64, on_threads

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.state.moments import moments_of

CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plus": (AdamCScheduleFreePlus, {"lr": 0.3, "weight_decay": 2.0}),
    "adamw": (AdamWScheduleFree, {"lr": 0.02, "weight_decay": 0.1}),
    "inner": (AdamWScheduleFree, {"lr": 0.02, "inner_momentum": 0.9}),
    "sgd": (SGDScheduleFree, {"lr": 0.1, "weight_decay": 0.1}),
}
SHAPES = [(0, 64), (7,), (64, 64), (80, 3, 32)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_that_of_float64_to_a_last_place(
    backend: str, name: str, dtype: torch.dtype
) -> None:
    optimizer, params, twin, twins = a_step_beside_float64(
        backend, CLASSES[name], SHAPES, dtype, "8bit", steps_for(backend, 12)
    )
    moved = 0.0
    for p, q in zip(params, twins, strict=True):
        if p.numel() < 4096:
            continue
        state, expected = optimizer.state[p], twin.state[q]
        found = {name: value.double().cpu() for name, value in moments_of(state).items()}
        e = state["displacement"].double().cpu()
        assert ((e - expected["displacement"]).abs() <= 2**-10 * e.abs() + 2**-24).all()
        if "exp_avg_sq" in found:
            assert state["exp_avg_sq_codes"].dtype == torch.uint8
            v, error = found["exp_avg_sq"], (found["exp_avg_sq"] - expected["exp_avg_sq"]).abs()
            assert (error <= 0.1251 * v).all()
            moved = max(moved, float((error / v).max()))
        if "exp_avg" in found:
            unit = found["exp_avg_sq"].sqrt() / 32
            place = torch.maximum(expected["exp_avg"].abs() * 0.126, unit * 2**-9)
            assert ((found["exp_avg"] - expected["exp_avg"]).abs() <= place).all()
        y = optimizer.iterates(p).y.double().cpu()
        places = 2e-6 if dtype == torch.float32 else 2**-15
        assert torch.allclose(y, q.detach(), rtol=places, atol=2e-6)
    assert name == "sgd" or moved > 0.05  # it is rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_the_mean_of_a_step_over_seeds_is_that_of_float64(
    state_format: str, dtype: torch.dtype
) -> None:
    cls, arguments = CLASSES["inner"]
    (p,) = params = make_params([(64, 64)], dtype)
    optimizer = cls(params, backend="cpu", state_format=state_format, **arguments)
    run(optimizer, params, 12)
    twin, (q,) = in_float64(optimizer, params, cls, arguments)
    y, saved, found = p.detach().clone(), copy.deepcopy(optimizer.state_dict()), []
    p.grad = (torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 4).to(dtype)
    for seed in range(64):
        with torch.no_grad():
            p.copy_(y)
        optimizer.load_state_dict(saved)
        optimizer.param_groups[0]["rounding_seed"] = seed
        optimizer.step()
        state = optimizer.state[p]
        kept = {**moments_of(state), "e": state["displacement"], "y": optimizer.iterates(p).y}
        found.append({name: value.double() for name, value in kept.items()})
    q.grad = p.grad.double()  # as it is in the parameter's dtype
    twin.step()
    state = twin.state[q]
    m, v, e, y = state["exp_avg"], state["exp_avg_sq"], state["displacement"], q.detach()
    in_8_bits = state_format == "8bit"
    in_24_bits = in_8_bits and dtype == torch.bfloat16
    cases = {  # with the largest last place; float32 computes the step, and m of 16 bits is to the nearest
        "exp_avg": (m, m.abs() / 8 + v.sqrt() * 2**-14 if in_8_bits else m.abs() * 2**-4),
        "exp_avg_sq": (v, v / 8 if in_8_bits else v * 2**-7),
        "e": (e, e.abs() * 2**-10 + 2**-24),
        "y": (y, y.abs() * (2**-15 if in_24_bits else 2**-20) + 1e-7),
    }
    for name, (exact, place) in cases.items():
        values = torch.stack([one[name] for one in found])
        away = (values.mean(0) - exact) / place
        # the standard error is half a place over the root of 64, at most
        assert away.abs().max() < 5 / 16, name
        assert away.mean().abs() < 4 / 16 / 64, name
    assert len(values.unique(dim=0)) == (64 if in_24_bits else 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_figures_are_of_what_is_stored(state_format: str, backend: str) -> None:
    """Those of the gradients, and the step size of the first step, are those of float32 state."""
    first = []
    for one in ("float32", state_format):
        params = make_params(SHAPES, torch.float32, device_of(backend))
        optimizer = AdamCScheduleFreePlus(params, lr=0.3, backend=backend, state_format=one)
        run(optimizer, params, 1)
        first.append(optimizer.metrics())
    for name in ("grad_l1", "grad_norm", "ip_term", "scheduled_lr"):
        assert first[0][name] == first[1][name]
    run(optimizer, params, 3, skip=1)
    e = [optimizer.state[p]["displacement"].double().cpu() for p in params]
    b = optimizer.metrics()["sf_beta1"]
    run(optimizer, params, 4, skip=3)
    dot = sum(float((p.grad.double().cpu() * x).sum()) for p, x in zip(params, e, strict=True))
    assert optimizer.metrics()["ip_term"] == pytest.approx(b * dot, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
def test_backends_round_with_the_same_random_bits(backend: str, dtype: torch.dtype) -> None:
    """But for the elements whose float32 values differ in the last bit."""
    runs = []
    for one in ("eager", backend):
        params = make_params(SHAPES, dtype, device_of(one))
        optimizer = AdamCScheduleFreePlus(
            params, lr=0.3, backend=one, state_format="8bit", rounding_seed=11
        )
        run(optimizer, params, 2)
        runs.append([optimizer.state[p] for p in params])
    equal = total = 0
    for a, b in zip(*runs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            equal += int((a[name].cpu() == b[name].cpu()).sum())
            total += a[name].numel()
    assert total > 20_000
    assert equal / total > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_make_no_difference(dtype: torch.dtype) -> None:
    shapes = [(300, 416), (77, 1024)]
    one, two, five = (
        on_threads(n, AdamCScheduleFreePlus, shapes, dtype, lr=0.3, state_format="8bit")
        for n in (1, 2, 5)
    )
    assert all(map(torch.equal, one, two))
    assert all(map(torch.equal, one, five))


@pytest.mark.parametrize(("beta1", "beta2", "bound"), [(0.9, 0.95, 1.17), (0.9, 0.999, 7.3)])
def test_u_stays_bounded_where_a_gradient_ends(beta1: float, beta2: float, bound: float) -> None:
    """One live neighbour does not hold m up while v decays, as it does where a block has one scale."""
    p = torch.nn.Parameter(torch.zeros(128, 32))
    optimizer = AdamWScheduleFree(
        [p],
        lr=1.0,
        betas=(0.9, beta2),
        inner_momentum=beta1,
        eps=1e-30,
        backend="cpu",
        state_format="8bit",
    )
    optimizer.train()
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for k in range(2000):
        p.grad = torch.randn(128, 32, generator=generator)
        if k >= 20:
            p.grad[:, 5:] = 0
        optimizer.step()
        if k >= 20:
            found = moments_of(optimizer.state[p])
            u = found["exp_avg"] / found["exp_avg_sq"].sqrt().clamp(min=1e-38)
            correction = math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))
            largest = max(largest, float(u.abs().max()) * correction)
    assert 0.5 < largest < 1.3 * bound
    assert p.isfinite().all()
    # m is at most a unit or two of its smallest codes
    assert u[:, 5:].abs().max() < 2**-9


def test_nothing_but_zeros_for_a_long_time_is_finite() -> None:
    p = torch.nn.Parameter(torch.ones(128, 32))
    optimizer = AdamWScheduleFree(
        [p], lr=0.01, inner_momentum=0.9, betas=(0.9, 0.95), backend="cpu", state_format="8bit"
    )
    optimizer.train()
    p.grad = torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    p.grad.zero_()
    for _ in range(20_000):
        optimizer.step()
    assert p.isfinite().all()
    assert all(value.isfinite().all() for value in moments_of(optimizer.state[p]).values())
