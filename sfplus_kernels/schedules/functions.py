"""Schedules as plain functions: the factor of the learning rate at a step.

The first step is 0, and ``total_steps`` is where the schedule has arrived at its end: a run of T steps takes
the factors of the steps 0 to T - 1, and the end itself is never taken. Later steps stay there. A warmup is
(step + 1) / warmup_steps, so that no step is lost to a factor of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Cooldown = Literal["1-sqrt", "linear"]


def linear_decay(
    step: float, total_steps: float, *, warmup_steps: float = 0, end_factor: float = 0.0
) -> float:
    """Up in a straight line to 1, and down in one: 1 - t / T without a warmup.

    Args:
        step: 0 in the first step.
        total_steps: the step at which ``end_factor`` is reached.
        warmup_steps: these many steps go up; they belong to ``total_steps``.
        end_factor: the factor from ``total_steps`` on.

    Returns:
        The factor, from 0 to 1.

    Raises:
        ValueError: an argument out of its range.
    """
    check(step, warmup_steps, total_steps, end_factor)
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    left = max(total_steps - step, 0) / (total_steps - warmup_steps)
    return end_factor + (1 - end_factor) * left


def cosine(
    step: float, total_steps: float, *, warmup_steps: float = 0, end_factor: float = 0.0
) -> float:
    """Up in a straight line to 1, and down along half a period of a cosine.

    Arguments, result and errors are those of `linear_decay`.
    """
    check(step, warmup_steps, total_steps, end_factor)
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    gone = min((step - warmup_steps) / (total_steps - warmup_steps), 1)
    return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * gone)) / 2


def warmup_stable_decay(
    step: float,
    total_steps: float,
    *,
    cooldown_steps: float,
    warmup_steps: float = 0,
    cooldown: Cooldown = "1-sqrt",
    end_factor: float = 0.0,
) -> float:
    """WSD: up to 1, constant, and down in the last ``cooldown_steps``.

    Args:
        step: 0 in the first step.
        total_steps: the step at which ``end_factor`` is reached.
        cooldown_steps: length of the way down.
        warmup_steps: length of the way up.
        cooldown: ``"1-sqrt"`` is 1 - sqrt(u) for u from 0 to 1, ``"linear"`` is 1 - u.
        end_factor: the factor from ``total_steps`` on.

    Returns:
        The factor, from 0 to 1.

    Raises:
        ValueError: an argument out of its range, or more steps up and down than ``total_steps``.
    """
    check(step, warmup_steps, total_steps, end_factor)
    if not 0 < cooldown_steps <= total_steps - warmup_steps:
        raise ValueError(
            f"cooldown_steps={cooldown_steps}; expected more than 0 and, with "
            f"warmup_steps={warmup_steps}, no more than total_steps={total_steps}"
        )
    if cooldown not in ("1-sqrt", "linear"):
        raise ValueError(f"cooldown={cooldown!r}; expected '1-sqrt' or 'linear'")
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    left = min(max(total_steps - step, 0) / cooldown_steps, 1)
    return end_factor + (1 - end_factor) * (
        left if cooldown == "linear" else 1 - math.sqrt(1 - left)
    )


def inverse_sqrt(step: float, *, warmup_steps: float = 0, timescale: float | None = None) -> float:
    """Up in a straight line to 1, and down as 1 / sqrt(t), without an end.

    Args:
        step: 0 in the first step.
        warmup_steps: these many steps go up.
        timescale: after the warmup the factor is sqrt(timescale / (timescale + steps since)). None for
            ``warmup_steps``, with which it is sqrt(warmup_steps / step); without a warmup 1, with which it
            is 1 / sqrt(step + 1).

    Returns:
        The factor, from 0 to 1.

    Raises:
        ValueError: an argument out of its range.
    """
    check(step, warmup_steps)
    if timescale is None:
        timescale = max(warmup_steps, 1)
    if not 0 < timescale < math.inf:
        raise ValueError(f"timescale={timescale}; expected a number of steps above 0, or None")
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    return math.sqrt(timescale / (timescale + step - warmup_steps))


def refined(
    step: float, factors: Sequence[float], total_steps: float, *, warmup_steps: float = 0
) -> float:
    """A schedule that is given by points, as `refine` makes it, stretched over a run of any length.

    Args:
        step: 0 in the first step.
        factors: the first is that of step 0, the last that of ``total_steps``, and the others lie between
            them at equal distances; straight lines join them. At least two.
        total_steps: where the last point lies. Later steps stay there.
        warmup_steps: the factors of these many steps are multiplied with a warmup.

    Returns:
        The factor.

    Raises:
        ValueError: an argument out of its range. The factors are checked by `RefinedLR`, once.
    """
    check(step, warmup_steps, total_steps)
    if len(factors) < 2:
        raise ValueError(
            f"{len(factors)} factors; expected at least 2: where it begins and where it ends"
        )
    place = min(step, total_steps) * (len(factors) - 1) / total_steps
    before = min(int(place), len(factors) - 2)
    share = place - before
    factor = factors[before] * (1 - share) + factors[before + 1] * share
    return factor * warmup(step, warmup_steps) if step < warmup_steps else factor


def warmup(step: float, warmup_steps: float) -> float:
    """The way up; a warmup of half a step is none."""
    return min((step + 1) / warmup_steps, 1)


def check(
    step: float,
    warmup_steps: float,
    total_steps: float | None = None,
    end_factor: float = 0.0,
) -> None:
    """Refuse what is out of its range; each comparison is written so that NaN fails it."""
    if not step >= 0:
        raise ValueError(f"step={step}; expected 0 or more: the first step is 0")
    if not 0 <= warmup_steps < math.inf:
        raise ValueError(f"warmup_steps={warmup_steps}; expected 0 or more")
    if total_steps is not None and not warmup_steps < total_steps < math.inf:
        raise ValueError(
            f"total_steps={total_steps}; expected more than warmup_steps={warmup_steps}, which belong to them"
        )
    if not 0 <= end_factor <= 1:
        raise ValueError(f"end_factor={end_factor}; expected 0 to 1")
