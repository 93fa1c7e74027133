"""The curve a / sqrt(t + b) + c through a loss, by scipy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from sfplus_kernels.forecast.curve import CannotForecast, Floats

BINS = 100  # at most so many means are fitted: single batches are noise
MINIMUM_BINS = 20
NEGLIGIBLE = 1e-3  # a scatter that is so small a share of the fall needs no explanation
BURN_INS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # shares of the curve, tried in this order


class Fit(NamedTuple):
    """A curve through bins, whose arrays have the shape (bins,)."""

    a: float
    b: float
    c: float
    covariance: Floats  # (3, 3), of a, b and c
    step: Floats
    loss: Floats
    per_bin: int  # points in a bin
    burn_in: float  # the share that was left out at the beginning

    def at(self, step: ArrayLike) -> Floats:
        """The curve."""
        return shape(step, self.a, self.b, self.c)

    def residual(self) -> Floats:
        """Of the bins."""
        return self.loss - self.at(self.step)

    def is_patternless(self) -> bool:
        """Whether the bins scatter about the curve as noise does, each for itself, or hardly at all."""
        residual = self.residual()
        exact = float(np.std(residual)) < NEGLIGIBLE * float(np.ptp(self.loss))
        return exact or autocorrelation(residual) < 2 / len(residual) ** 0.5


def shape(step: ArrayLike, a: float, b: float, c: float) -> Floats:
    """The formula."""
    return np.asarray(a / np.sqrt(np.asarray(step) + b) + c)


def search(
    step: Floats,
    loss: Floats,
    *,
    burn_in: float | None = None,
    floor: float = 0.0,
    first: float = 0.0,
) -> Fit:
    """The curve after the smallest burn-in that leaves no pattern, else after the largest that there is.

    Args:
        step, loss: (n,), single steps or means.
        burn_in: the share to leave out; None for those of BURN_INS in turn.
        floor: what c cannot be below.
        first: no step before this one is used either.

    Raises:
        CannotForecast: too few points, or no curve.
    """
    found = None
    for share, kept in parts(step, first, burn_in):
        found = fitted(*binned(step[kept], loss[kept]), share, floor)
        if found.is_patternless():
            break
    if found is None:
        raise CannotForecast(
            f"fewer than {MINIMUM_BINS} of {len(step)} points are left after the beginning"
        )
    return found


def parts(step: Floats, first: float, burn_in: float | None) -> Iterator[tuple[float, Floats]]:
    """Shares that are left out, with the points that are kept: those with enough for a fit."""
    for share in BURN_INS if burn_in is None else (burn_in,):
        kept = step >= max(step[0] + share * (step[-1] - step[0]), first)
        if kept.sum() >= MINIMUM_BINS:
            yield share, kept


def binned(step: Floats, loss: Floats) -> tuple[Floats, Floats, int]:
    """Means of equally many points each, and how many; what fills no bin is left out at the beginning."""
    size = -(-len(step) // BINS)
    count = len(step) // size
    means = [v[len(v) - count * size :].reshape(count, size).mean(1) for v in (step, loss)]
    return means[0], means[1], size


def fitted(step: Floats, loss: Floats, per_bin: int, burn_in: float, floor: float) -> Fit:
    """Least squares, all bins alike, from several starts: 0 <= a, 0 <= b <= 10 times the last step,
    and c between the floor and the lowest bin."""
    last, lowest = float(step[-1]), float(loss.min())
    candidates = []
    for share in (0.01, 0.1, 1.0):
        start = (float(np.ptp(loss)) * last**0.5, share * last, lowest - 0.2 * float(np.ptp(loss)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # no covariance: found below
            try:
                values, covariance = optimize.curve_fit(
                    shape,
                    step,
                    loss,
                    p0=(start[0], start[1], max(start[2], floor)),
                    bounds=([0, 0, floor], [np.inf, 10 * last, lowest]),
                )
            except (RuntimeError, ValueError):  # no convergence, or no room between the bounds
                continue
        candidates.append((float(np.sum((loss - shape(step, *values)) ** 2)), values, covariance))
    if not candidates:
        raise CannotForecast("no curve a / sqrt(t + b) + c comes near this loss")
    _, values, covariance = min(candidates, key=lambda candidate: candidate[0])
    if not np.isfinite(covariance).all():
        raise CannotForecast("the loss does not say how the curve bends: it is flat, or too short")
    rho = max(0.0, autocorrelation(loss - shape(step, *values)))
    a, b, c = map(float, values)
    # Neighbours that are alike count as fewer points.
    return Fit(a, b, c, covariance * (1 + rho) / (1 - rho), step, loss, per_bin, burn_in)


def autocorrelation(residual: Floats) -> float:
    """Of neighbours: about 0 for noise, near 1 for a curve of the wrong form."""
    total = float(residual @ residual)
    return float(residual[1:] @ residual[:-1]) / total if total > 0 else 0.0
