"""What a finished run shows: a picture and a table, both from its metrics alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib as mpl
import numpy as np
from rich.table import Table

from lm.files import read_metrics
from lm.model import GPT
from lm.settings import OptimizerName, Settings
from sfplus_kernels.forecast import CannotForecast, LossCurve, fit

mpl.use("Agg")  # no window

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

PICTURE = "loss.png"
FINAL_STEPS = 50  # one batch is noisy: the final training loss is a mean over these
COLOURS = {
    OptimizerName.SCHEDULE_FREE_PLUS: "tab:blue",
    OptimizerName.ADAMW: "tab:orange",
    OptimizerName.ADAMW_SCHEDULE_FREE: "tab:green",
}

Lines = list[dict[str, Any]]


def column(lines: Lines, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have this key."""
    pairs = [(line["step"], line[key]) for line in lines if key in line]
    return np.array([s for s, _ in pairs], dtype=float), np.array(
        [v for _, v in pairs], dtype=float
    )


def draw(folder: Path, settings: Settings) -> Path:
    """Write the picture; returns its path."""
    figure, (losses, rates) = plt.subplots(
        2, 1, sharex=True, figsize=(9, 8), height_ratios=(3, 1), layout="constrained"
    )
    for name, lines in read_metrics(folder).items():
        colour = COLOURS[OptimizerName(name)]
        losses.plot(
            *column(lines, "loss"), color=colour, alpha=0.3, lw=0.8, label=f"{name}: training"
        )
        for point, style in (("x", "o-"), ("y", "^--")):
            step, value = column(lines, f"validation_loss_{point}")
            if len(step):
                where = f" at {point}" if name != OptimizerName.ADAMW else ""
                label = f"{name}: validation{where}"
                losses.plot(step, value, style, color=colour, mfc="white", ms=5, label=label)
        for rate in ("gamma", "lr"):
            step, value = column(lines, rate)
            if len(step):
                rates.semilogy(step, value, color=colour, label=f"{name}: {rate}")
        if name != OptimizerName.ADAMW:
            draw_fit(losses, lines, settings)
    losses.set(ylabel="loss (nats per byte)", title=title(settings))
    losses.set_ylim(top=min(losses.get_ylim()[1], 6))
    rates.set(xlabel="step", ylabel="gamma, or AdamW's lr")
    for axes in (losses, rates):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    path = folder / PICTURE
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def title(settings: Settings) -> str:
    """What was trained, on how much."""
    model = GPT(settings.dim, settings.layers, settings.context, settings.seed)
    parameters = sum(p.numel() for p in model.parameters())
    seen = settings.steps * settings.batch * settings.context
    return (
        f"A GPT of {parameters:,} parameters on Python's standard library, "
        f"{seen / parameters:,.0f} bytes for each parameter"
    )


def draw_fit(axes: Axes, lines: Lines, settings: Settings) -> None:
    """The forecast, on to twice the length, with its interval.

    Only for runs without a schedule: with one, the loss falls because the rate does, and a run of
    twice the length would have another schedule.
    """
    try:
        forecast = fit(LossCurve(*column(lines, "loss")))
    except CannotForecast:
        return
    length = 2 * settings.steps
    span = np.linspace(forecast.fit.step[0], length, 200)
    ends = np.array([forecast.interval(float(step)) for step in span])
    low, high = ends[-1]
    axes.plot(span, forecast.fit.at(span), "k--", lw=1, label="forecast from the training loss")
    axes.fill_between(
        span,
        *ends.T,
        color="k",
        alpha=0.1,
        label=f"where it lies 9 times of 10: {low:.3f} to {high:.3f} at {length:,} steps",
    )


def table(folder: Path) -> Table:
    """The optimizers side by side."""
    result = Table(title="The same weights, text and steps for each")
    result.add_column("")
    rows: dict[str, list[str]] = {}
    for name, lines in read_metrics(folder).items():
        result.add_column(name, justify="right")
        for label, value in figures(lines).items():
            rows.setdefault(label, []).append(value)
    for label, values in rows.items():
        result.add_row(label, *values)
    return result


def figures(lines: Lines) -> dict[str, str]:
    """What the table says about one optimizer."""
    final, last = lines[-FINAL_STEPS:], lines[-1]
    at_x, at_y = last.get("validation_loss_x"), last["validation_loss_y"]
    if at_x is None:  # only Schedule-Free has an average beside the weights that are trained
        at_x = at_y
    seconds = median(line["seconds"] for line in lines)
    share = median(line["optimizer_seconds"] for line in lines) / seconds
    return {
        f"training loss, mean of the last {len(final)} steps": f"{fmean(x['loss'] for x in final):.3f}",
        "validation loss (at x)": f"{at_x:.3f}",
        "validation loss while training (at y)": f"{at_y:.3f}",
        "seconds per step, median": f"{seconds:.4f}",
        "of which the optimizer": f"{share:.1%}",
        "bytes of optimizer state": f"{last['state_bytes']:,}",
    }
