"""The forecast drawn, in a terminal and as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfplus_kernels.forecast.curve import Floats, LossCurve
from sfplus_kernels.forecast.fitting import LEVEL, Forecast

WIDTH, HEIGHT = 76, 18  # characters
POINTS = 200


def text(forecast: Forecast, until: float) -> str:
    """A plot in characters: o the loss, * the curve, : its interval; both axes are straight."""
    step = np.linspace(forecast.fit.step[0], until, WIDTH)
    middle, low, high = bands(forecast, step)
    kept = forecast.fit.step <= until
    top = float(max(forecast.fit.loss[kept].max(), middle[0]))
    bottom = float(min(low.min(), forecast.fit.loss[kept].min()))
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]

    def row(value: float) -> int:
        return round((HEIGHT - 1) * (top - min(max(value, bottom), top)) / (top - bottom))

    for column in range(WIDTH):
        for line in range(row(high[column]), row(low[column]) + 1):
            grid[line][column] = ":"
        grid[row(middle[column])][column] = "*"
    for at, loss in zip(forecast.fit.step[kept], forecast.fit.loss[kept], strict=True):
        grid[row(loss)][int((WIDTH - 1) * (at - step[0]) / (until - step[0]))] = "o"
    labels = {0: f"{top:.3f}", HEIGHT - 1: f"{bottom:.3f}"}
    body = "\n".join(f"{labels.get(i, ''):>8} |{''.join(line)}" for i, line in enumerate(grid))
    ends = f"{step[0]:,.0f}", f"{until:,.0f} steps"
    axis = f"{'':8} +{'-' * WIDTH}\n{'':10}{ends[0]}{ends[1]:>{WIDTH - len(ends[0])}}"
    return f"{body}\n{axis}\n{'':10}o loss, mean of a bin   * curve   : {LEVEL:.0%} interval"


def png(forecast: Forecast, curve: LossCurve, until: float, path: Path) -> None:
    """A picture in any format that matplotlib writes.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a picture needs matplotlib: pip install 'sfplus-kernels[forecast]'", name=error.name
        ) from error
    fit = forecast.fit
    step = np.geomspace(fit.step[0], until, POINTS)
    middle, low, high = bands(forecast, step)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.step, curve.loss, color="0.8", lw=0.8, label="loss")
    axes.plot(fit.step, fit.loss, "o", color="tab:blue", ms=3, label="means that were fitted")
    axes.plot(
        step, middle, color="tab:red", label=f"{fit.a:.3g} / sqrt(t + {fit.b:.3g}) + {fit.c:.3g}"
    )
    axes.fill_between(step, low, high, color="tab:red", alpha=0.15, label=f"{LEVEL:.0%} interval")
    axes.axhline(fit.c, color="0.5", ls=":", label="c, what it goes to")
    axes.set_xlim(float(fit.step[0]) * 0.8, until * 1.1)
    axes.set_ylim(float(min(low.min(), fit.loss.min(), fit.c)) - 0.02, float(fit.loss.max()) + 0.05)
    axes.set(
        xscale="log", xlabel="step", ylabel="loss", title="The loss so far, and where it is going"
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def bands(forecast: Forecast, step: Floats) -> tuple[Floats, Floats, Floats]:
    """The curve and both ends of its interval at these steps."""
    ends = np.array([forecast.interval(float(t)) for t in step])
    return np.array([forecast.at(float(t)) for t in step]), ends[:, 0], ends[:, 1]
