"""State in 8 bits: each buffer against reference/state_in_8_bits.py, and steps against float64."""

import copy
import math
from typing import Any

import pytest
import torch
from support import (
    BACKENDS,
    assert_same_bits,
    bits,
    device_of,
    make_params,
    steps_for,
)
from support.rounded_state import a_step_beside_float64, in_float64, on_threads, steps
from torch import Tensor

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.backends import eight_bits as eager
from sfplus_kernels.contract import eight_bits
from sfplus_kernels.contract.formats import whole
from sfplus_kernels.reference import state_in_8_bits as reference
from sfplus_kernels.state.moments import moments_of

N = 1 << 17


def words(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**32, (n,), generator=torch.Generator().manual_seed(seed))


def second_moments() -> Tensor:
    """Blocks of 32 of all sizes, with zeros, outliers, subnormal numbers, and what is not finite."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.randint(-150, 120, (N // 32, 1), generator=generator).expand(-1, 32).flatten()
    apart = torch.randint(-40, 4, (N,), generator=generator)
    v = torch.ldexp(torch.randn(N, generator=generator).square().double(), scale + apart).float()
    v[torch.rand(N, generator=generator) < 0.1] = 0
    v[:64] = 0
    v[64], v[100] = math.inf, math.nan
    v[200:232] = 1e-45
    v[5000] = torch.finfo(torch.float32).max
    return v


def kept(v: Tensor, random: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the eager backend stores of v and e = v, and v of it."""
    found = eager.stored({"exp_avg_sq": v, "displacement": v}, random)
    return found, eight_bits.exp_avg_sq_of(found["exp_avg_sq"], found["exponents"])


def test_codes_are_those_of_the_reference() -> None:
    v, random = second_moments(), words(N)
    found, stored = kept(v, random)
    codes, exponents = reference.stored_exp_avg_sq(v, random)
    assert torch.equal(found["exp_avg_sq"], codes)
    assert torch.equal(found["exponents"].flatten(), exponents)
    assert torch.equal(stored, reference.exp_avg_sq_of(codes, exponents))
    m = torch.ldexp(torch.randn(N), torch.randint(-20, 5, (N,))) * stored.sqrt()
    m[:3] = torch.tensor([math.inf, -0.0, 1e30])
    m = torch.where(m.isnan(), 0, m)
    found = eager.stored({"exp_avg": m, "exp_avg_sq": v, "displacement": v}, random)
    assert torch.equal(found["exp_avg"], reference.stored_exp_avg(m, stored, random))
    back = eight_bits.exp_avg_of(found["exp_avg"], stored)
    assert torch.equal(back, reference.exp_avg_of(found["exp_avg"], stored))
    assert back.isfinite().all()
    e = torch.ldexp(torch.randn(N), torch.randint(-44, 20, (N,)))
    found = eager.stored({"displacement": e}, random)
    assert torch.equal(found["displacement"], reference.stored_displacement(e, random))


PUBLISHED = """
    0 00000000 00000000 3f800000 00 00
    1 ffffffff 00000001 bf800000 01 fe
    2 88f418ef 3f800000 3f666666 c8 5e
    3 619e537d 3f333333 bf4ccccd c3 df
    4 00000000 37fba882 38d1b717 4f 31
    5 ffffffff 2b8cbccc b4a10fb0 01 96
    6 88f418ef 42f6e979 c0f00000 ff db
    7 619e537d 3a83126f 3a83126f 78 38
"""


def test_published_codes() -> None:
    """Random word, v, m -> codes of v and m; the other 24 of the block are 0, its exponent 102."""
    rows = [[int(word, 16) for word in line.split()] for line in PUBLISHED.strip().split("\n")]
    _, word, v, m, *expected = torch.tensor(rows).T
    v, m = (x.to(torch.int32).view(torch.float32) for x in (v, m))
    pad = torch.zeros(24)
    new = {"exp_avg_sq": torch.cat([v, pad]), "exp_avg": torch.cat([m, pad]), "displacement": pad}
    found = eager.stored({**new, "displacement": torch.zeros(32)}, torch.cat([word, pad.long()]))
    assert found["exponents"].tolist() == [102]
    for name, codes in zip(("exp_avg_sq", "exp_avg"), expected, strict=True):
        assert found[name][:8].tolist() == codes.tolist()
        assert not found[name][8:].any()


def test_codes_stay_what_they_are() -> None:
    """Whatever the random bits: what a format has is stored as it is."""
    _, v = kept(second_moments(), words(N))
    m = v.sqrt() * torch.randn(N).clamp(-3, 3)
    first = eager.stored({"exp_avg": m, "exp_avg_sq": v, "displacement": v}, words(N))
    m = eight_bits.exp_avg_of(first["exp_avg"], v)
    for random in (words(N, 1), torch.zeros(N).long(), torch.full((N,), 2**32 - 1)):
        e = first["displacement"].float()
        again = eager.stored({"exp_avg": m, "exp_avg_sq": v, "displacement": e}, random)
        assert all(torch.equal(again[name], first[name]) for name in first)
        y = whole(*eager.parts(m, words(N)))
        assert torch.equal(whole(*eager.parts(y, random)).view(torch.int32), y.view(torch.int32))
    # and to the nearest
    codes, exponents = eight_bits.exp_avg_sq_codes(v, eight_bits.HALF_OF_MOMENT)
    assert torch.equal(codes, first["exp_avg_sq"])
    assert torch.equal(exponents, first["exponents"])
    nearest = eight_bits.exp_avg_codes(m, v, eight_bits.HALF_OF_MOMENT)
    assert torch.equal(nearest, first["exp_avg"])


def test_only_zero_is_zero() -> None:
    v = second_moments()
    for random in (words(N), torch.zeros(N).long()):
        found, stored = kept(v, random)
        assert torch.equal(found["exp_avg_sq"] == 0, v == 0)
        assert torch.equal(stored == 0, v == 0)
        assert stored.isfinite().all()


@pytest.mark.parametrize("value", [1.2345, -3.1e-3, 2.3e-5, 7e-7, -2.1e-8, 0.19])
def test_rounding_by_chance_has_no_bias(value: float) -> None:
    n = 1 << 18
    random, x = words(n), torch.full((n,), value)
    size = x.abs()
    found = eager.stored({"exp_avg": x, "exp_avg_sq": size, "displacement": x}, random)
    v = eight_bits.exp_avg_sq_of(found["exp_avg_sq"], found["exponents"])
    one = torch.ones(n)
    m = eager.stored({"exp_avg": x, "exp_avg_sq": one, "displacement": x}, random)["exp_avg"]
    cases = [
        (found["displacement"], 11, x, 2**-24),
        (v, 10, size, 0),
        (eight_bits.exp_avg_of(m, one), 6, x, 2**-14),
        (whole(*eager.parts(x, random)), 9, x, 0),
    ]
    for stored, random_bits, of, least in cases:
        exact, numbers = of[0].double(), stored.double()
        assert 1 <= len(numbers.unique()) <= 2
        place = max(float(numbers.max() - numbers.min()), least)
        error = abs(float(numbers.mean() - exact))
        assert error <= 4 * float(numbers.std()) / n**0.5 + place / 2**random_bits


def test_24_bits_of_y() -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (1 << 20,), generator=generator)
    ties = (torch.arange(-(2**15), 2**15) << 16) + 0x8000
    y = torch.cat([patterns, ties, ties - 1, ties + 1]).to(torch.int32).view(torch.float32)
    y = y[y.abs() < 3.38e38]
    random = words(len(y))
    high, low = eager.parts(y, random)
    assert_same_bits([high, low], list(reference.parts_of_y(y, random)))
    back = whole(high, low)
    assert torch.equal(bits(back), bits(reference.y_of_parts(high, low)))
    # less than one place of 24 bits away, and to the nearest at most half of one
    away = (back.view(torch.int32).long() - y.view(torch.int32).long()).abs()
    assert away.max() < 256
    nearest = whole(*eager.parts(y, None))
    assert (nearest.view(torch.int32).long() - y.view(torch.int32).long()).abs().max() <= 128
    for special in (math.inf, -math.inf):
        x = torch.tensor([special])
        assert torch.equal(whole(*eager.parts(x, torch.tensor([255]))), x)
    assert whole(*eager.parts(torch.tensor([math.nan]), torch.tensor([255]))).isnan()


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
    steps(optimizer, params, 12)
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
        steps(optimizer, params, 1)
        first.append(optimizer.metrics())
    for name in ("grad_l1", "grad_norm", "ip_term", "scheduled_lr"):
        assert first[0][name] == first[1][name]
    steps(optimizer, params, 3, skip=1)
    e = [optimizer.state[p]["displacement"].double().cpu() for p in params]
    b = optimizer.metrics()["sf_beta1"]
    steps(optimizer, params, 4, skip=3)
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
        steps(optimizer, params, 2)
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
