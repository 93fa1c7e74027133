"""Refined schedules: against closed forms, against the bound's numerical optimum, and on a problem."""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.optimize import minimize, minimize_scalar

from sfplus_kernels.schedules import linear_decay, refine, refined
from sfplus_kernels.schedules.refinement import Norm, median_filtered

Array = NDArray[np.float64]


# closed forms


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("value", [1.0, 0.1, 1e-200, 1e200])
@pytest.mark.parametrize("length", [2, 3, 10, 1001])
def test_constant_norms_give_linear_decay(norm: Norm, value: float, length: int) -> None:
    """To the last bit."""
    found = refine([value] * length, norm=norm)
    assert found == [linear_decay(k, length - 1) for k in range(length)]


def test_norms_that_fall_as_one_over_sqrt_t() -> None:
    """w_t = t, so eta_t = t times (T (T + 1) - t (t + 1)) / 2: up, to t = T / sqrt(3), and down."""
    length = 1000
    t = np.arange(1, length + 1)
    found = np.array(refine(t**-0.5, smoothing=0))
    exact = t * (length * (length + 1) - t * (t + 1)) / 2
    np.testing.assert_allclose(found, exact / exact.max(), rtol=1e-12)
    assert t[found.argmax()] == pytest.approx(length / math.sqrt(3), abs=1)
    np.testing.assert_allclose(refine(1 / t, norm="l1", smoothing=0), found, rtol=1e-12)


@pytest.mark.parametrize("power", [-0.3, 0.25, 0.5, 1.0])
def test_norms_that_are_a_power(power: float) -> None:
    """G = u^-power for u from 0 to 1: eta goes to u^(2 power) (1 - u^(2 power + 1)), times a number."""
    length = 20_000
    u = (np.arange(length) + 0.5) / length
    found = np.array(refine(u**-power, smoothing=0))
    limit = u ** (2 * power) * (1 - u ** (2 * power + 1))
    middle = length // 2
    inner = slice(length // 20, -length // 20)
    np.testing.assert_allclose(
        (found / found[middle])[inner], (limit / limit[middle])[inner], rtol=5e-3
    )
    if power > 0:
        peak = (2 * power / (4 * power + 1)) ** (1 / (2 * power + 1))
        assert u[found.argmax()] == pytest.approx(peak, abs=1e-3)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_norms_that_jump(factor: float) -> None:
    """At step 60 of 100: two straight lines, whose weights are 1 and 1 / factor^2."""
    norms = [3.0] * 60 + [3.0 * factor] * 40
    weight = factor**-2
    exact = [60 - t + 40 * weight for t in range(1, 61)]
    exact += [weight * (100 - t) * weight for t in range(61, 101)]
    found = refine(norms, smoothing=0)
    np.testing.assert_allclose(found, np.array(exact) / max(exact), rtol=1e-13)


def test_of_the_norms_only_their_proportions_count() -> None:
    norms = np.random.default_rng(0).uniform(0.5, 2, 50)
    found = refine(norms)
    np.testing.assert_allclose(refine(norms * 1e150), found, rtol=1e-12)
    np.testing.assert_allclose(refine(norms * 1e-150), found, rtol=1e-12)
    assert max(found) == 1
    assert found[-1] == 0
    assert min(found[:-1]) > 0


def test_norms_may_be_tensors() -> None:
    norms = torch.tensor([3.0, 1.0, 2.0, 2.0])
    assert refine(norms) == refine(list(norms)) == refine(float(g) for g in norms)


# the numerical optimum of the bound


def bound(weights: Array, squares: Array, distance: float = 1.0) -> float:
    """(D^2 + sum w^2 G^2) / (2 sum w)"""
    return float((distance**2 + (weights**2 * squares).sum()) / (2 * weights.sum()))


def steps_of(weights: Array) -> Array:
    """eta_t = w_t times the sum of the later ones, over the sum of all."""
    return weights * (weights.sum() - weights.cumsum()) / weights.sum()


def lowest(objective: Callable[[Array], float], length: int) -> Array:
    """The positive numbers that minimise it."""
    found = minimize(
        lambda logs: math.log(objective(np.exp(logs))),
        np.zeros(length),
        method="BFGS",
        options={"gtol": 1e-10, "maxiter": 10_000},
    )
    return np.exp(found.x)


@pytest.mark.parametrize("seed", range(5))
def test_l2_is_the_optimum_of_the_bound(seed: int) -> None:
    norms = np.random.default_rng(seed).uniform(0.3, 3, 12)
    distance = 1.7
    weights = lowest(lambda w: bound(w, norms**2, distance), 12)
    best = distance / math.sqrt((norms**-2).sum())
    assert bound(weights, norms**2, distance) == pytest.approx(best, rel=1e-9)
    steps = steps_of(weights)
    np.testing.assert_allclose(
        refine(norms, smoothing=0), steps / steps.max(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(5))
def test_l1_is_the_optimum_for_a_method_that_divides_by_the_size_of_each_coordinate(
    seed: int,
) -> None:
    """Where z moves by w g / p, coordinate by coordinate, the bound has sum w^2 sum_i g_i^2 / p_i.

    With p = |g| that is the L1 norm.
    """
    gradients = np.random.default_rng(seed).normal(size=(12, 7))
    gradients *= np.random.default_rng(seed).uniform(0.3, 3, (12, 1))
    divisors = np.abs(gradients)
    squares = (gradients**2 / divisors).sum(1)
    steps = steps_of(lowest(lambda w: bound(w, squares), 12))
    norms = np.abs(gradients).sum(1)
    found = refine(norms, norm="l1", smoothing=0)
    np.testing.assert_allclose(found, steps / steps.max(), rtol=1e-4, atol=1e-6)


def last_iterate_bound(steps: Array, norms: Array) -> float:
    """What is known of f(x_T) - f* after SGD with any steps at all, for D = 1.

    The mean over the run, and what the last iterate adds to it.
    """
    energies = steps**2 * norms**2
    tail = steps[::-1].cumsum()[::-1]
    tail_energies = energies[::-1].cumsum()[::-1]
    mean = (1 + energies.sum()) / (2 * steps.sum())
    return float(mean + 0.5 * (steps[:-1] / tail[1:] * tail_energies[:-1] / tail[:-1]).sum())


NORMS = {
    "constant": np.ones(30),
    "large in the beginning": 1 + 4 * np.exp(-np.arange(30) / 4),
    "rising": np.linspace(1, 2, 30),
    "falling": np.linspace(2, 1, 30),
}


@pytest.mark.parametrize("norms", NORMS.values(), ids=NORMS)
def test_near_the_optimum_over_all_schedules(norms: Array) -> None:
    """Of another bound, which holds for any steps, each schedule with the scale that is best for it."""

    def at_best_scale(shape: Array) -> float:
        found = minimize_scalar(
            lambda log: last_iterate_bound(math.exp(log) * shape, norms), (-3, 0)
        )
        return float(found.fun)

    optimum = last_iterate_bound(lowest(lambda s: last_iterate_bound(s, norms), 30), norms)
    # in this bound the last step counts as well: the factors are those before the one that is 0
    found = at_best_scale(np.array(refine([*norms, norms[-1]], smoothing=0)[:-1]))
    linear = at_best_scale(1 - np.arange(30) / 30)
    assert optimum <= found < 1.1 * optimum
    assert found <= linear * (1 + 1e-9)
    if norms is not NORMS["constant"]:
        assert linear > 1.12 * optimum


# the median filter


@pytest.mark.parametrize("length", [2, 3, 11, 40, 200])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3, 1.0])
def test_median_filter(length: int, smoothing: float) -> None:
    """As wide as the share of the run; the first value repeated before it, the run mirrored after it."""
    norms = np.random.default_rng(length).lognormal(size=length)
    half = int(smoothing * length) // 2
    padded = np.pad(np.pad(norms, (half, 0), mode="edge"), (0, half), mode="reflect")
    expected = median_filter(padded, size=2 * half + 1)[half : half + length]
    assert median_filtered(norms.tolist(), half) == expected.tolist()
    assert refine(norms, smoothing=smoothing) == refine(expected, smoothing=0)


def test_a_spike_is_filtered_out() -> None:
    norms = [1.0] * 100
    norms[40] = 1000.0
    assert refine(norms) == refine([1.0] * 100)
    assert refine(norms, smoothing=0)[40] < 1e-5


# warmup


def test_without_a_warmup_it_begins_at_its_peak() -> None:
    norms = 1 + 9 * np.exp(-np.arange(200) / 10)
    rising = refine(norms)
    flat = refine(norms, warmup=False)
    peak = rising.index(1.0)
    assert 20 < peak < 100
    assert rising[0] < 0.02
    assert flat[:peak] == [1.0] * peak
    assert flat[peak:] == rising[peak:]


def test_over_a_run_of_another_length() -> None:
    """Every tenth norm gives nearly the schedule that all of them give."""
    norms = 1 + 4 * np.exp(-np.arange(1001) / 60)
    all_of_them = refine(norms)
    every_tenth = refine(norms[::10])
    found = [refined(k, every_tenth, 1000) for k in range(1001)]
    np.testing.assert_allclose(found, all_of_them, atol=0.03)


# what is refused


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ([], "0 norms; expected at least 2"),
        ([1.0], "1 norms; expected at least 2"),
        ([1.0, 2.0, 0.0], "norm 2 of 3 is 0.0; expected positive"),
        ([1.0, -2.0, 1.0], "norm 1 of 3 is -2.0; expected positive"),
        ([math.nan, 2.0], "norm 0 of 2 is nan; expected finite .*math.isfinite"),
        ([1.0, math.inf], "norm 1 of 2 is inf; expected finite"),
        ([1e200, 1e200, 1e-200], "the last norm is 1e-200"),
    ],
)
def test_norms_that_are_none(norms: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refine(norms, smoothing=0)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_bad_smoothing(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"smoothing={smoothing}"):
        refine([1.0, 1.0], smoothing=smoothing)


def test_an_unknown_norm() -> None:
    with pytest.raises(ValueError, match="norm='linf'; expected 'l2'"):
        refine([1.0, 1.0], norm="linf")  # type: ignore[arg-type]


def test_a_hundred_thousand_norms_take_seconds() -> None:
    generator = random.Random(0)
    found = refine(generator.uniform(0.9, 1.1) for _ in range(100_000))
    assert found[50_000] == pytest.approx(0.5, abs=0.05)
