"""The forecast tried on the finished runs: fitted on their beginning, compared with their end."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sfplus_kernels.forecast import CannotForecast, LossCurve, fit

SEEN = (0.1, 0.25, 0.5)
END = 0.05  # the last share of a run, whose mean loss is its end
ALL = 200  # points: shorter curves are not tried


class Trial(NamedTuple):
    """One forecast of the end of one run."""

    name: str
    optimizer: str
    seen: float  # share of the run
    error: float | None  # forecast minus truth; None: refused
    width: float  # half of the interval
    held: bool
    reason: str


def try_all(results: list[dict[str, Any]], with_rate: bool = False) -> list[Trial]:
    """Every run that ended, from each share of it.

    Args:
        with_rate: show the fit the learning rate of a schedule, too, as a metrics file would.
    """
    trials = []
    for result in results:
        curve = result["curve"]
        step, loss = np.array(curve["step"]), np.array(curve["loss"])
        if result["diverged"] or len(step) < ALL:
            continue
        scheduled = result["point"]["schedule"] is not None
        rate = np.array(curve["rate"]) if with_rate and scheduled else None
        tail = round(END * len(step))
        end, truth = float(step[-tail:].mean()), float(loss[-tail:].mean())
        for seen in SEEN:
            count = round(seen * len(step))
            name, optimizer = result["name"], result["point"]["optimizer"]
            shown = LossCurve(step[:count], loss[:count], None if rate is None else rate[:count])
            try:
                found = fit(shown)
            except CannotForecast as error:
                trials.append(Trial(name, optimizer, seen, None, 0.0, False, str(error)))
                continue
            low, high = found.interval(end)
            error = found.at(end) - truth
            held = low <= truth <= high
            trials.append(Trial(name, optimizer, seen, error, (high - low) / 2, held, ""))
    return trials


def summary(trials: list[Trial]) -> list[tuple[str, ...]]:
    """For each optimizer and share: forecasts, refusals, held intervals, error and width."""
    lines = []
    for optimizer, seen in sorted({(t.optimizer, t.seen) for t in trials}):
        here = [t for t in trials if (t.optimizer, t.seen) == (optimizer, seen)]
        made = [t for t in here if t.error is not None]
        errors = [abs(t.error) for t in made if t.error is not None]
        lines.append(
            (
                optimizer,
                f"{seen:.0%}",
                str(len(here)),
                str(len(here) - len(made)),
                f"{sum(t.held for t in made)} of {len(made)}",
                f"{np.median(errors):.3f}" if made else "",
                f"{np.median([t.width for t in made]):.3f}" if made else "",
            )
        )
    return lines
