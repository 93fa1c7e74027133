"""Schedules as functions of the step: their values at points that can be said, and what they refuse."""

import math
from collections.abc import Callable
from functools import partial

import pytest

from sfplus_kernels.schedules import (
    cosine,
    inverse_sqrt,
    linear_decay,
    refined,
    warmup_stable_decay,
)

WITH_AN_END: dict[str, Callable[..., float]] = {
    "linear_decay": linear_decay,
    "cosine": cosine,
    "1-sqrt": partial(warmup_stable_decay, cooldown_steps=20),
    "linear": partial(warmup_stable_decay, cooldown_steps=20, cooldown="linear"),
}
with_an_end = pytest.mark.parametrize("schedule", WITH_AN_END.values(), ids=WITH_AN_END)


@with_an_end
@pytest.mark.parametrize("end_factor", [0.0, 0.1, 1.0])
def test_up_to_one_down_to_the_end_and_there_it_stays(
    schedule: Callable[..., float], end_factor: float
) -> None:
    at = partial(schedule, total_steps=100, warmup_steps=10, end_factor=end_factor)
    assert [at(k) for k in range(10)] == [(k + 1) / 10 for k in range(10)]
    assert at(10) == 1
    assert at(100) == at(101) == at(10**9) == end_factor
    down = [at(k) for k in range(10, 101)]
    assert down == sorted(down, reverse=True)
    if end_factor < 1:
        assert down[-2] > end_factor


def test_linear_decay() -> None:
    assert [linear_decay(k, 8) for k in range(9)] == [1 - k / 8 for k in range(9)]
    assert linear_decay(55, 100, warmup_steps=10) == 0.5
    assert linear_decay(55, 100, warmup_steps=10, end_factor=0.5) == 0.75


def test_cosine() -> None:
    assert cosine(25, 100) == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-15)
    assert cosine(55, 100, warmup_steps=10) == pytest.approx(0.5, rel=1e-15)
    assert cosine(50, 100, end_factor=0.1) == pytest.approx(0.55, rel=1e-15)


def test_wsd_is_constant_until_the_cooldown() -> None:
    wsd = partial(warmup_stable_decay, total_steps=100, cooldown_steps=16, warmup_steps=10)
    assert {wsd(k) for k in range(9, 85)} == {1.0}
    assert wsd(88) == 0.5  # a quarter of the way: 1 - sqrt(1 / 4)
    assert wsd(88, cooldown="linear") == 0.75
    assert wsd(93, end_factor=0.2) == pytest.approx(0.2 + 0.8 * (1 - 0.75), rel=1e-15)


def test_wsd_whose_cooldown_is_all_is_linear_decay() -> None:
    for k in range(31):
        wsd = warmup_stable_decay(k, 30, cooldown_steps=25, warmup_steps=5, cooldown="linear")
        assert wsd == linear_decay(k, 30, warmup_steps=5)


def test_inverse_sqrt() -> None:
    for k in range(20):
        assert inverse_sqrt(k) == pytest.approx(1 / math.sqrt(k + 1), rel=1e-15)
    for k in range(50, 500, 7):
        assert inverse_sqrt(k, warmup_steps=50) == pytest.approx(math.sqrt(50 / k), rel=1e-15)
    assert inverse_sqrt(24, warmup_steps=50) == 0.5
    assert inverse_sqrt(50 + 300, warmup_steps=50, timescale=100) == 0.5


def test_refined_joins_points() -> None:
    factors = [0.5, 1.0, 0.25]
    assert [refined(k, factors, 4) for k in range(6)] == [0.5, 0.75, 1.0, 0.625, 0.25, 0.25]
    assert [refined(k, factors, 2) for k in range(3)] == factors
    assert [refined(k, factors, 4, warmup_steps=2) for k in range(3)] == [0.25, 0.75, 1.0]


@pytest.mark.parametrize("length", [2, 3, 10, 101])
@pytest.mark.parametrize("total", [1, 7, 100, 1000])
def test_refined_points_of_a_straight_line_are_a_straight_line(length: int, total: int) -> None:
    line = [1 - i / (length - 1) for i in range(length)]
    for k in range(total + 1):
        assert refined(k, line, total) == pytest.approx(linear_decay(k, total), abs=1e-15)


@with_an_end
@pytest.mark.parametrize(
    ("step", "arguments", "message"),
    [
        (-1, {}, "step=-1; expected 0 or more"),
        (math.nan, {}, "step=nan"),
        (0, {"total_steps": 0}, "total_steps=0; expected more than warmup_steps=0"),
        (0, {"total_steps": math.nan}, "total_steps=nan"),
        (0, {"total_steps": math.inf}, "total_steps=inf"),
        (0, {"warmup_steps": 100}, "total_steps=100; expected more than warmup_steps=100"),
        (0, {"warmup_steps": -1}, "warmup_steps=-1; expected 0 or more"),
        (0, {"end_factor": -0.1}, "end_factor=-0.1; expected 0 to 1"),
        (0, {"end_factor": 1.1}, "end_factor=1.1; expected 0 to 1"),
        (0, {"end_factor": math.nan}, "end_factor=nan"),
    ],
)
def test_refusals(
    schedule: Callable[..., float], step: float, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(step, **{"total_steps": 100, **arguments})


@pytest.mark.parametrize("cooldown_steps", [0, -3, 91, math.nan])
def test_a_cooldown_that_does_not_fit(cooldown_steps: float) -> None:
    with pytest.raises(ValueError, match=f"cooldown_steps={cooldown_steps}; .*warmup_steps=10"):
        warmup_stable_decay(0, 100, warmup_steps=10, cooldown_steps=cooldown_steps)


def test_an_unknown_cooldown_and_bad_timescales() -> None:
    with pytest.raises(ValueError, match="cooldown='sqrt'; expected '1-sqrt' or 'linear'"):
        warmup_stable_decay(0, 100, cooldown_steps=10, cooldown="sqrt")  # type: ignore[arg-type]
    for timescale in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"timescale={timescale}"):
            inverse_sqrt(0, timescale=timescale)


@pytest.mark.parametrize("factors", [[], [1.0]])
def test_too_few_points(factors: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(factors)} factors; expected at least 2"):
        refined(0, factors, 10)
