"""The forecast. docs/training-runs.md says how far it can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from sfplus_kernels.forecast.curve import CannotForecast, Floats, LossCurve, checked
from sfplus_kernels.forecast.least_squares import BURN_INS, Fit, search

MINIMUM_POINTS = 48  # half of them must be enough for a fit
# shares of the curve from which its end is forecast, to see how well that goes
REHEARSALS = (0.5, 0.7)
END = 0.05  # the last share of the curve, whose mean is its end
LEVEL = 0.9
STEADY_RATE = 0.01  # a learning rate that changes by less is constant
FURTHEST = 1e4  # times the last step: what is not reached by then is never reached


@dataclass(frozen=True)
class Forecast:
    """A curve a / sqrt(t + b) + c and how far it can be trusted; t counts steps.

    Attributes:
        fit: the curve and what it was fitted to. ``fit.c`` is what the loss goes to: an estimate of
            ``f_star``.
        drift: by how much a forecast over twice the steps was wrong within the curve itself.
        limit_drift: by how much c was.
        floor: what the loss cannot be below.
    """

    fit: Fit
    drift: float
    limit_drift: float
    floor: float

    def at(self, step: float) -> float:
        """The loss expected at this step: the mean, without the noise of a single batch."""
        return float(self.fit.at(step))

    def interval(self, step: float, level: float = LEVEL) -> tuple[float, float]:
        """Where the mean loss at this step lies with probability ``level``.

        Its width comes from the scatter of the bins, and from the drift for each doubling of the
        steps. A loss that
        falls and has a floor bounds it, too: a later loss is not above the last one of the fit.
        """
        root = float(step + self.fit.b) ** -0.5
        gradient = np.array([root, -0.5 * self.fit.a * root**3, 1.0])
        last = float(self.fit.step[-1])
        drift = self.drift * max(0.0, float(np.log2(step / last)))
        highest = self.at(last) if step > last else np.inf
        return self._between(self.at(step), gradient, drift, level, highest)

    def limit_interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Where c lies with probability ``level``."""
        highest = self.at(float(self.fit.step[-1]))
        return self._between(
            self.fit.c, np.array([0.0, 0.0, 1.0]), self.limit_drift, level, highest
        )

    def steps_for(self, loss: float, level: float = LEVEL) -> tuple[float, float, float]:
        """The step at which the mean loss gets there: expected, earliest, latest; ``inf`` for never.

        Never means not within 10,000 times the last step. Earliest and latest are where the ends of
        the interval get there.
        """
        return (
            self._first_below(loss, self.at),
            self._first_below(loss, lambda step: self.interval(step, level)[0]),
            self._first_below(loss, lambda step: self.interval(step, level)[1]),
        )

    def _first_below(self, loss: float, curve: Callable[[float], float]) -> float:
        start, last = float(self.fit.step[0]), float(self.fit.step[-1])
        if curve(start) <= loss:
            return start
        # The upper end rises again where little is known: first the stretch, then the place in it.
        steps = np.geomspace(start, FURTHEST * last, 400)
        below = next((i for i, step in enumerate(steps) if curve(step) <= loss), None)
        if below is None:
            return float("inf")
        return float(optimize.brentq(lambda t: curve(t) - loss, steps[below - 1], steps[below]))

    def _between(
        self, value: float, gradient: Floats, drift: float, level: float, highest: float
    ) -> tuple[float, float]:
        deviation = float(gradient @ self.fit.covariance @ gradient + drift**2) ** 0.5
        width = deviation * float(stats.t.ppf(0.5 + level / 2, len(self.fit.step) - 3))
        return max(self.floor, value - width), min(highest, value + width)


def fit(curve: LossCurve, *, burn_in: float | None = None, floor: float = 0.0) -> Forecast:
    """Fit a / sqrt(t + b) + c to a loss of training.

    The loss is averaged in at most 100 bins of equally many points and of the same weight. Of the
    beginning as much is
    left out as it takes until the rest scatters about the curve without a pattern: 5 to 70 %. Then the
    end of the curve is forecast from its first 50 and 70 %, and the errors widen the intervals.

    Args:
        curve: the loss at each step, or means over several steps. If it has a learning rate, the fit begins
            where that has become constant, and a rate that never does is refused.
        burn_in: the share to leave out, from 0 to 0.7; None chooses, and refuses a loss of another form.
        floor: what the loss cannot be below: 0 for a cross-entropy or a squared error, ``-inf`` if
            nothing is known.

    Raises:
        CannotForecast: too few points, no fall, a schedule, or a loss that does not follow the curve.
    """
    step, loss, rate = checked(*curve)
    if burn_in is not None and not 0 <= burn_in <= BURN_INS[-1]:
        raise CannotForecast(f"burn_in is {burn_in}; expected a share from 0 to {BURN_INS[-1]}")
    if len(step) < MINIMUM_POINTS:
        raise CannotForecast(
            f"{len(step)} points; expected {MINIMUM_POINTS} or more. Log more often, or train for longer"
        )
    if loss.min() < floor:
        raise CannotForecast(
            f"the loss is {loss.min():.4g} at step {step[loss.argmin()]:g}, and its floor is {floor:g}; "
            "say what it "
            "cannot be below"
        )
    first = float(step[0]) if rate is None else constant_from(step, rate)
    found = search(step, loss, burn_in=burn_in, floor=floor, first=first)
    check_fall(found)
    if burn_in is None and not found.is_patternless():
        raise CannotForecast(
            "the loss does not follow a / sqrt(t + b) + c: it stays above or below the best such curve "
            "for long "
            "stretches, whatever is left out at the beginning. A schedule of the learning rate does "
            "that, a change "
            "of the data, or a run that has only begun. burn_in forces a fit"
        )
    drift, limit_drift = rehearse(step, loss, found, burn_in, floor, first)
    return Forecast(found, drift, limit_drift, floor)


def rehearse(
    step: Floats, loss: Floats, whole: Fit, burn_in: float | None, floor: float, first: float
) -> tuple[float, float]:
    """How wrong forecasts of the curve's own end are, for each doubling of the steps, and how wrong c is.

    Both are roots of mean squares over REHEARSALS.
    """
    tail = max(1, round(END * len(step)))
    end, mean = float(step[-tail:].mean()), float(loss[-tail:].mean())
    errors, limits = [], []
    for share in REHEARSALS:
        seen = round(share * len(step))
        if not (step[:seen] >= first).any():
            continue
        try:
            early = search(step[:seen], loss[:seen], burn_in=burn_in, floor=floor, first=first)
        except CannotForecast:
            continue
        errors.append((float(early.at(end)) - mean) / np.log2(step[-1] / step[seen - 1]))
        limits.append(early.c - whole.c)
    if not errors:
        raise CannotForecast(
            "too few points lie after the beginning to try the forecast on the curve itself; train for longer"
        )
    return float(np.sqrt(np.mean(np.square(errors)))), float(np.sqrt(np.mean(np.square(limits))))


def constant_from(step: Floats, rate: Floats) -> float:
    """The step from which the learning rate is constant.

    Raises:
        CannotForecast: it changes until near the end.
    """
    known = np.isfinite(rate)
    step, rate = step[known], rate[known]
    if not len(rate):
        raise CannotForecast("no learning rate is a finite number")
    changing = np.flatnonzero(np.abs(rate - rate[-1]) > STEADY_RATE * abs(rate[-1]))
    if not len(changing):
        return float(step[0])
    last = int(changing[-1])
    if step[last] > step[0] + BURN_INS[-1] * (step[-1] - step[0]):
        raise CannotForecast(
            f"the learning rate still changes at step {step[last]:g} ({rate[last]:.3g}, at the end "
            f"{rate[-1]:.3g}). "
            "Under a schedule the loss falls because the rate does, and a longer run would have another "
            "schedule"
        )
    return float(step[last + 1])


def check_fall(found: Fit) -> None:
    """Raise CannotForecast unless the loss falls by more than it scatters."""
    where = f"from step {found.step[0]:g} to {found.step[-1]:g}"
    slope = stats.linregress(found.step, found.loss)
    if slope.slope > 0 and slope.pvalue < 0.01:
        raise CannotForecast(f"the loss rises {where}; expected one that falls")
    fall = float(found.at(found.step[0]) - found.at(found.step[-1]))
    scatter = float(np.std(found.residual()))
    if fall <= scatter:
        raise CannotForecast(
            f"the loss falls by {fall:.2g} {where}, and scatters by {scatter:.2g}; expected a fall that "
            "can be seen"
        )
