"""What 100,000 steps make of state in few bits: an average does not forget what rounding does to it."""

import functools

import pytest

from bench.long_average import CASES, excess_losses

STEPS, SEEDS = 100_000, (0, 1)


@functools.cache
def excess_loss(state_format: str, beta2: float) -> float:
    return sum(
        loss
        for seed in SEEDS
        for _, loss in excess_losses(state_format, beta2, seed, looks=(STEPS,))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("state_format", "most"), [("16bit", 1.05), ("8bit", 1.08)])
@pytest.mark.parametrize("beta2", CASES)
def test_excess_loss_is_that_of_float32(beta2: float, state_format: str, most: float) -> None:
    """With v to the nearest it would be 1.6 times as large for the larger beta2, with e in 8 bits twice."""
    full, small = excess_loss("float32", beta2), excess_loss(state_format, beta2)
    assert 0 < full < 1
    assert small != full
    assert small / full < most
