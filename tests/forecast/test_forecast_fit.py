"""The fit: known curves come back, intervals hold, and what cannot be foretold is refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from sfplus_kernels.forecast import CannotForecast, LossCurve, fit
from sfplus_kernels.forecast.least_squares import binned, search, shape

STEPS = np.arange(1.0, 2001.0)
TRUE = (20.0, 60.0, 1.5)


def noisy(seed: int, scatter: float = 0.05, steps: np.ndarray = STEPS) -> np.ndarray:
    return shape(steps, *TRUE) + np.random.default_rng(seed).normal(0, scatter, len(steps))


def test_the_curve_comes_back_without_noise() -> None:
    found = fit(LossCurve(STEPS, shape(STEPS, *TRUE) + 1e-9 * np.sin(17 * STEPS)))
    # not exactly: the mean over a bin lies above the curve at its middle
    np.testing.assert_allclose((found.fit.a, found.fit.b, found.fit.c), TRUE, rtol=5e-3)
    assert found.at(50_000) == pytest.approx(float(shape(50_000, *TRUE)), rel=2e-4)
    assert found.limit_interval() == pytest.approx((1.5, 1.5), abs=1e-3)


def test_the_interval_holds_about_as_often_as_it_says() -> None:
    """The noise is the only error here: 90 % of 30, and more by what the rehearsals add."""
    true = float(shape(8000, *TRUE))
    found = [fit(LossCurve(STEPS, noisy(seed))).interval(8000) for seed in range(30)]
    assert sum(low <= true <= high for low, high in found) >= 25
    assert max(high - low for low, high in found) < 0.2


def test_intervals_widen_with_the_distance_and_the_level() -> None:
    found = fit(LossCurve(STEPS, noisy(0)))
    width = [high - low for low, high in map(found.interval, (2000, 4000, 8000))]
    assert width == sorted(width)
    low, high = found.interval(8000, level=0.5)
    assert high - low < width[2]


def test_steps_for_a_loss_are_where_the_curve_and_the_interval_reach_it() -> None:
    found = fit(LossCurve(STEPS, noisy(1)))
    loss = found.at(6000)
    expected, earliest, latest = found.steps_for(loss)
    assert expected == pytest.approx(6000, rel=1e-6)
    assert earliest < expected < latest
    assert found.interval(earliest)[0] == pytest.approx(loss)
    assert found.steps_for(0.01)[0] == math.inf
    assert found.steps_for(100.0) == (found.fit.step[0],) * 3


def test_a_loss_of_another_form_at_the_beginning_is_left_out() -> None:
    loss = noisy(2, scatter=0.01)
    loss[:150] += np.linspace(3, 0, 150)
    found = fit(LossCurve(STEPS, loss))
    assert found.fit.burn_in >= 0.1
    assert found.at(20_000) == pytest.approx(float(shape(20_000, *TRUE)), abs=0.03)


def test_bins_are_means_and_drop_the_oldest_points() -> None:
    step, loss, size = binned(np.arange(251.0), np.arange(251.0) * 2)
    assert size == 3
    assert len(step) == 83
    assert step[-1] == 249
    assert step[0] == 3  # of 2, 3, 4
    np.testing.assert_array_equal(loss, 2 * step)


def test_a_form_that_does_not_fit_widens_the_interval() -> None:
    """A loss that falls like t to the power -0.15: the rehearsals see that the curve bends too early."""
    loss = 4 * STEPS**-0.15 + np.random.default_rng(0).normal(0, 0.02, len(STEPS))
    found = fit(LossCurve(STEPS, loss))
    deviation_of_noise = np.sqrt(found.fit.covariance[2, 2])
    assert found.limit_drift > deviation_of_noise
    low, high = found.interval(8000)
    assert low <= 4 * 8000**-0.15 <= high


REFUSED: dict[str, tuple[Callable[[], LossCurve], str]] = {
    "few": (lambda: LossCurve(STEPS[:40], noisy(0)[:40]), "40 points; expected 48"),
    "nan": (
        lambda: LossCurve(STEPS, np.where(STEPS == 700, np.nan, noisy(0))),
        "not finite at step 700",
    ),
    "two runs": (
        lambda: LossCurve(np.tile(STEPS[:100], 2), np.tile(noisy(0)[:100], 2)),
        "step 1 follows step 100.*choose one",
    ),
    "shapes": (lambda: LossCurve(STEPS, noisy(0)[:10]), "shapes"),
    "rises": (lambda: LossCurve(STEPS, noisy(0)[::-1].copy()), "rises from step"),
    "flat": (lambda: LossCurve(STEPS, np.random.default_rng(0).normal(2, 0.1, 2000)), "the loss"),
    "below the floor": (lambda: LossCurve(STEPS, noisy(0) - 3), "its floor is 0"),
    "another form": (
        lambda: LossCurve(STEPS, 5 - STEPS / 1000 + 0.3 * np.sin(STEPS / 40)),
        "does not follow",
    ),
    "a schedule": (
        lambda: LossCurve(STEPS, noisy(0), 0.01 * (1 - STEPS / 2001)),
        "learning rate still changes at step 1999",
    ),
    "no rate": (lambda: LossCurve(STEPS, noisy(0), np.full(2000, np.nan)), "no learning rate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_foretold_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(CannotForecast, match=reason):
        fit(make())


def test_burn_in_forces_a_fit_and_is_checked() -> None:
    wavy = LossCurve(STEPS, noisy(0, 0.001) + 0.02 * np.sin(STEPS / 100))
    with pytest.raises(CannotForecast, match="does not follow"):
        fit(wavy)
    assert fit(wavy, burn_in=0.25).fit.burn_in == 0.25
    with pytest.raises(CannotForecast, match="burn_in is 0.9"):
        fit(wavy, burn_in=0.9)


def test_a_warmup_of_the_rate_is_left_out() -> None:
    rate = np.minimum(STEPS / 500, 1.0)
    found = fit(LossCurve(STEPS, noisy(3), rate))
    assert found.fit.step[0] >= 495


def test_a_floor_of_minus_infinity_lets_c_be_negative() -> None:
    found = fit(LossCurve(STEPS, noisy(0) - 3), floor=-math.inf)
    assert found.fit.c == pytest.approx(-1.5, abs=0.1)


def test_the_search_stops_at_the_first_burn_in_without_a_pattern() -> None:
    assert search(STEPS, noisy(4)).burn_in == 0.05
