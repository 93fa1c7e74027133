"""The curve a / sqrt(t + b) + c, which the loss of a run without a schedule follows quite well."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit

MINIMUM_POINTS = 20


class Curve(NamedTuple):
    """A loss over steps."""

    a: float
    b: float
    c: float

    def at(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        """The loss at these steps."""
        return shape(step, *self)


def shape(step: NDArray[np.float64], a: float, b: float, c: float) -> NDArray[np.float64]:
    """The formula."""
    return np.asarray(a / np.sqrt(step + b) + c)


def fit(step: NDArray[np.float64], loss: NDArray[np.float64]) -> Curve | None:
    """The curve through these points; None if they are too few or hold an Inf or NaN.

    The bounds say what is known: the loss falls, and not below 0, and what is left of it at the end
    lies below what was seen.
    """
    if len(step) < MINIMUM_POINTS or not np.isfinite(loss).all():
        return None
    floor, length = float(loss.min()), float(step[-1])
    start = (float(np.ptp(loss)) * length**0.5, 0.1 * length, 0.5 * floor)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", OptimizeWarning
        )  # about error bars, which nobody reads here
        try:
            (a, b, c), _ = curve_fit(
                shape, step, loss, p0=start, bounds=([0, 0, 0], [np.inf, 10 * length, floor])
            )
        except (RuntimeError, ValueError):  # no convergence, or losses at which no bounds fit
            return None
    return Curve(float(a), float(b), float(c))
