"""What 100,000 steps make of state in few bits: an average does not forget what rounding does to it."""

import functools
from typing import Any

import pytest
from support import ROOT

from bench.long_average import CASES, LOOKS, RESULTS, excess_losses, ratios, read

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


def test_a_format_is_compared_with_float32_over_the_seeds_that_both_have() -> None:
    def row(state_format: str, seed: int, loss: float) -> dict[str, Any]:
        case = {"state_format": state_format, "beta2": 0.95, "seed": seed, "steps": 10}
        return {**case, "excess_loss": loss}

    rows = [row("float32", 0, 1.0), row("float32", 1, 3.0), row("8bit", 0, 1.5)]
    assert ratios(rows) == {(0.95, "8bit"): {10: 1.5}}
    assert ratios([*rows, row("8bit", 1, 3.0)]) == {(0.95, "8bit"): {10: 4.5 / 4}}
    assert ratios(rows[1:]) == {}


@pytest.mark.parametrize(("state_format", "most"), [("16bit", 1.05), ("8bit", 1.08)])
@pytest.mark.parametrize("beta2", CASES)
def test_the_committed_million_steps_are_told_in_the_docs(
    beta2: float, state_format: str, most: float
) -> None:
    found = ratios(read(RESULTS))[beta2, state_format]
    assert set(found) == set(LOOKS)
    assert found[1_000_000] < most
    told = " | ".join(f"{ratio:.3f}" for _, ratio in sorted(found.items()))
    assert f"| {told} |" in (ROOT / "docs" / "memory.md").read_text()
