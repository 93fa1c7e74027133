"""The schedule of the next run from the gradient norms of the last one.

"When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement" (Defazio, Cutkosky, Mehta and
Mishchenko, 2023, arXiv 2310.07831). With weights w_t and the steps

    eta_t = w_t (w_{t+1} + ... + w_T) / (w_1 + ... + w_T)

the last of T iterates of SGD obeys, in expectation,

    f(x_T) - f*  <=  (D^2 + sum_t w_t^2 G_t^2) / (2 sum_t w_t)

where D is the distance to go and G_t the norm of the gradient of step t. The right-hand side is smallest for
w_t = 1 / G_t^2, times a number; constant norms give linear decay. Where a method divides coordinate by
coordinate with what has the size of |g|, as Adam does, the sum has |g_t|_1 in place of G_t^2.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import accumulate
from typing import Literal

Norm = Literal["l2", "l1"]


def refine(
    norms: Iterable[float], *, norm: Norm = "l2", smoothing: float = 0.1, warmup: bool = True
) -> list[float]:
    """The refined schedule, from the gradient norms of a run that is over.

    Args:
        norms: norms of the gradient before clipping, in the order of the steps and at equal distances:
            of every step, or of every tenth. At least two, finite, positive.
        norm: which norm that is, and so what the schedule is for. ``"l2"`` is for SGD, with weights
            1 / G^2; ``"l1"``, the sum of absolute values, is for Adam and its like, which divide coordinate
            by coordinate, with weights 1 / G.
        smoothing: the norms go through a median filter as wide as this share of the run, 0 to 1; 0 for none.
        warmup: whether the schedule may rise. Refined schedules often do, for the norms of the first
            steps are large. With False they are 1 until the peak.

    Returns:
        As many factors as there are norms, the largest of them 1 and the last 0, for
        `refined` and `RefinedLR`.

    Raises:
        ValueError: fewer than two norms, one that is not finite, or one that is not positive; an argument
            out of its range.
    """
    values = checked(norms)
    if norm not in ("l2", "l1"):
        raise ValueError(f"norm={norm!r}; expected 'l2' (for SGD) or 'l1' (for Adam and its like)")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing={smoothing}; expected a share of the run, 0 to 1")
    values = median_filtered(values, int(smoothing * len(values)) // 2)
    # the smallest norm has weight 1, so that nothing overflows: the scale is divided out in the end
    smallest = min(values)
    weights = [(smallest / value) ** (2 if norm == "l2" else 1) for value in values]
    after = list(accumulate(reversed(weights), initial=0.0))[-2::-1]  # the sum of the later ones
    steps = [weight * rest for weight, rest in zip(weights, after, strict=True)]
    peak = max(steps)
    if peak == 0:
        raise ValueError(
            f"the last norm is {values[-1]:g}, all others are so much larger that their weights are 0; "
            "leave the last ones out"
        )
    factors = [step / peak for step in steps]
    if not warmup:
        first = factors.index(1.0)
        factors[:first] = [1.0] * first
    return factors


def median_filtered(values: list[float], half: int) -> list[float]:
    """Each value replaced with the median of itself and ``half`` neighbours on either side.

    Before the first value it is repeated, so that large norms in the beginning stay; after the last one the
    sequence goes back the way that it came. ``half`` is below the number of values.
    """
    if half == 0:
        return values
    around = [values[0]] * half + values + values[-2 : -2 - half : -1]
    window = sorted(around[: 2 * half])
    medians = []
    for i in range(len(values)):
        insort(window, around[i + 2 * half])
        medians.append(window[half])
        del window[bisect_left(window, around[i])]
    return medians


def checked(norms: Iterable[float]) -> list[float]:
    """The norms as floats."""
    values = [float(value) for value in norms]
    if len(values) < 2:
        raise ValueError(f"{len(values)} norms; expected at least 2, those of one run in order")
    for place, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(
                f"norm {place} of {len(values)} is {value}; expected finite norms. Leave such steps out: "
                "[g for g in norms if math.isfinite(g)]"
            )
        if value <= 0:
            raise ValueError(
                f"norm {place} of {len(values)} is {value}; expected positive norms, since a weight is 1 "
                "over a norm. Leave steps without a gradient out"
            )
    return values
