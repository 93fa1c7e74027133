"""What is read from a file and what is fitted: a loss over steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class CannotForecast(ValueError):
    """Why a file or a curve gives no forecast, and what would."""


class LossCurve(NamedTuple):
    """A training loss, with the learning rate where it was recorded.

    All arrays have the same shape (n,). ``step`` rises. A loss that is a mean over several steps
    stands at their middle.
    """

    step: Floats
    loss: Floats
    rate: Floats | None = None


def checked(step: ArrayLike, loss: ArrayLike, rate: ArrayLike | None = None) -> LossCurve:
    """The curve as float64 arrays.

    Raises:
        CannotForecast: shapes differ, values are not finite, or steps do not rise.
    """
    steps, losses = np.asarray(step, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    rates = None if rate is None else np.asarray(rate, dtype=np.float64)
    shapes = {array.shape for array in (steps, losses, rates) if array is not None}
    if len(shapes) > 1 or steps.ndim != 1:
        raise CannotForecast(
            f"step, loss and rate have the shapes {sorted(shapes)}; expected one shape (n,) for all"
        )
    if not np.isfinite(losses).all() or not np.isfinite(steps).all():
        where = steps[~np.isfinite(losses)][:1]
        raise CannotForecast(
            f"the loss is not finite at step {where[0]:g}: the run broke down there; forecast from what "
            "came before"
            if where.size
            else "a step is not a finite number"
        )
    if (np.diff(steps) <= 0).any():
        at = int(np.argmax(np.diff(steps) <= 0))
        raise CannotForecast(
            f"step {steps[at + 1]:g} follows step {steps[at]:g}; expected steps that rise. If several "
            "runs are in "
            "one file, choose one (on the command line: --where key=value)"
        )
    return LossCurve(steps, losses, rates)
