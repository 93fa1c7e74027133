"""The charts: loss against length, against the learning rate, against the batch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no window

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from anytime_parts.plan import CAPPED
from anytime_parts.report import Result, best, kinds, losses, reaches

COLOURS = {
    "adamw": "tab:orange",
    "adamw-schedulefree": "tab:green",
    "schedule-free-plus": "tab:blue",
    CAPPED: "tab:purple",
}
NAMES = {
    "adamw": "AdamW, {}",
    "adamw-schedulefree": "AdamWScheduleFree",
    "schedule-free-plus": "ScheduleFree+, no cap",
    CAPPED: "ScheduleFree+ with max_lr",
}
STYLES = {"linear": "o-", "wsd": "s--", "cosine": "^:", None: "o-"}
LENGTH = 100  # of the charts in which it is not an axis
SHORTEST = 20
HIGHEST = 1.15  # times the lowest loss: the top of the picture of a valley
WIDE = 3  # rates, to see how wide a valley is


def draw(results: list[Result], path: Path) -> None:
    """The frontier of the two smallest models, then the valleys and the batches of the smallest."""
    plain = [r for r in results if r["point"]["batch"] == 1]
    models = sorted({r["point"]["model"] for r in plain}, key=lambda m: sizes(plain)[m])
    figure, axes = plt.subplots(2, 2, figsize=(12, 9.5), layout="constrained")
    draw_frontier(axes[0, 0], of_model(plain, models[0]))
    if len(models) == 1:
        axes[0, 1].set_visible(False)
    elif max(t for r in of_model(plain, models[1]) for t in losses(r)) > SHORTEST:
        draw_frontier(axes[0, 1], of_model(plain, models[1]))
    else:
        draw_valley(axes[0, 1], of_model(plain, models[1]), SHORTEST)
    draw_valley(axes[1, 0], of_model(plain, models[0]), LENGTH)
    draw_batches(axes[1, 1], of_model(results, models[0]))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sizes(results: list[Result]) -> dict[str, int]:
    """Parameters of each model."""
    return {r["point"]["model"]: r["parameters"] for r in results}


def of_model(results: list[Result], model: str) -> list[Result]:
    """Its runs."""
    return [r for r in results if r["point"]["model"] == model]


def seed(results: Iterable[Result], number: int = 0) -> list[Result]:
    """The runs with that seed."""
    return [r for r in results if r["point"]["seed"] == number]


def draw_frontier(axes: Axes, results: list[Result]) -> None:
    """A line a kind, seed 0: AdamW's joins runs, a Schedule-Free line is one run, the longest and best.

    The other seeds of the same settings are points without a line.
    """
    for (optimizer, schedule), runs in kinds(results).items():
        chosen = longest(runs) if schedule is None else best_of_each(runs)
        values = {t: losses(run)[t] for t, run in sorted(chosen.items())}
        colour = COLOURS[optimizer]
        label = NAMES[optimizer].format(schedule)
        label += ": a run for each length" if schedule else ": one run"
        axes.semilogx(
            list(values), list(values.values()), STYLES[schedule], color=colour, label=label
        )
        for length, run in chosen.items():
            others = [losses(r)[length] for r in same_setting(runs, run, length)]
            axes.plot([length] * len(others), others, ".", color=colour, markersize=4)
    parameters = results[0]["parameters"]
    mark(axes, {t for r in results for t in losses(r)})
    axes.set(
        xlabel="bytes per parameter",
        ylabel="validation loss (nats per byte)",
        title=f"Loss against length, {parameters:,} parameters (points: other seeds)",
    )
    finish(axes)


def longest(runs: list[Result]) -> dict[int, Result]:
    """The best of the longest runs, at every length at which it was read off."""
    done = [run for run in seed(runs) if losses(run)]
    length = max((run["point"]["length"] for run in done), default=0)
    found = best([run for run in done if run["point"]["length"] == length], length)
    return dict.fromkeys(losses(found), found) if found else {}


def best_of_each(runs: list[Result]) -> dict[int, Result]:
    """The best run of each length."""
    lengths = {run["point"]["length"] for run in seed(runs)}
    chosen = {t: best(seed(runs), t) for t in lengths}
    return {t: run for t, run in chosen.items() if run}


def same_setting(runs: list[Result], run: Result, length: int) -> list[Result]:
    """The runs with other seeds."""
    settings = run["point"]["settings"]
    return [
        r
        for r in runs
        if r["point"]["seed"] > 0 and r["point"]["settings"] == settings and length in losses(r)
    ]


def draw_valley(axes: Axes, results: list[Result], length: int) -> None:
    """Runs that differ in the learning rate alone: of each kind the set that holds its best run."""
    shown: list[float] = []
    for (optimizer, schedule), runs in kinds(results).items():
        axis = "max_lr" if optimizer == CAPPED else "lr"
        found: dict[str, dict[float, float]] = {}
        for run in seed(runs):
            value = losses(run).get(length)
            settings = dict(run["point"]["settings"])
            rate = settings.pop(axis)
            if value is not None and reaches(run, length):
                found.setdefault(json.dumps(settings, sort_keys=True), {})[rate] = value
        valley = best_valley(list(found.values()))
        if len(valley) > 1:
            rates, values = zip(*sorted(valley.items()), strict=True)
            label = NAMES[optimizer].format(schedule)
            label += {"schedule-free-plus": ": lr, a factor", CAPPED: ""}.get(optimizer, ": lr")
            axes.semilogx(rates, values, STYLES[schedule], color=COLOURS[optimizer], label=label)
            shown += values
    if shown:  # a run that ran away would flatten the rest: its line leaves the picture
        axes.set_ylim(min(shown) - 0.03, HIGHEST * min(shown))
    axes.set(
        xlabel="lr, or max_lr",
        ylabel="validation loss (nats per byte)",
        title=f"How wide the valley is, {results[0]['parameters']:,} parameters, {length} bytes for each",
    )
    finish(axes)


def best_valley(sets: list[dict[float, float]]) -> dict[float, float]:
    """Of losses by rate those with the lowest loss; a set of fewer than WIDE only if there is no other."""
    return min(sets, key=lambda v: (len(v) < WIDE, len(v) < 2, min(v.values())), default={})


def draw_batches(axes: Axes, results: list[Result]) -> None:
    """The best of each kind at each batch, by how many settings were tried."""
    for (optimizer, schedule), runs in kinds(results).items():
        values: dict[int, float] = {}
        for batch in sorted({run["point"]["batch"] for run in runs}):
            found = best([r for r in seed(runs) if r["point"]["batch"] == batch], LENGTH)
            if found:
                values[found["bytes_per_step"]] = losses(found)[LENGTH]
        if len(values) > 1:
            label = NAMES[optimizer].format(schedule)
            pairs = list(values), list(values.values())
            axes.semilogx(*pairs, STYLES[schedule], color=COLOURS[optimizer], label=label)
    mark(axes, {r["bytes_per_step"] for r in results})
    axes.set(
        xlabel="bytes per step",
        ylabel="validation loss (nats per byte)",
        title=f"The best at each batch, at {LENGTH} bytes per parameter",
    )
    finish(axes)


def mark(axes: Axes, where: set[int]) -> None:
    """Ticks at what was measured, and no others."""
    axes.set_xticks(ticks := sorted(where))
    axes.set_xticklabels([f"{tick:,}" for tick in ticks])
    axes.minorticks_off()


def finish(axes: Axes) -> None:
    """What all have."""
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
