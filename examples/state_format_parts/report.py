"""The formats against float32: the loss at the end, and the way there."""

from __future__ import annotations

import json
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no window

from matplotlib import pyplot as plt

from state_format_parts.run import Run

Result = dict[str, Any]
COLUMNS = ("parameters", "format", "loss at the end, by seed", "mean", "more than float32", "error")
COLOURS = {"float32": "tab:gray", "16bit": "tab:orange", "8bit": "tab:blue"}


def load(path: Path) -> list[Result]:
    """The lines of the results, each with the ``run`` that it is of."""
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [{**line, "run": Run(**{f.name: line[f.name] for f in fields(Run)})} for line in lines]


def by_seed(results: list[Result], state_format: str, dtype: str) -> dict[int, Result]:
    """The longest runs of a format."""
    steps = max(r["run"].steps for r in results)
    kind = (state_format, dtype, steps)
    here = [(r["run"], r) for r in results]
    return {run.seed: r for run, r in here if (run.state_format, run.dtype, run.steps) == kind}


def difference(
    runs: dict[int, Result], base: dict[int, Result]
) -> tuple[float | None, float | None]:
    """How much more loss at the end, the mean over the seeds that both have, and its standard error.

    Runs with one seed have the same weights and batches, so each is compared with its own.
    """
    more = [
        runs[seed]["validation_loss"][-1] - base[seed]["validation_loss"][-1]
        for seed in sorted(runs.keys() & base.keys())
    ]
    mean = statistics.mean(more) if more else None
    return mean, statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else None


def rows(results: list[Result]) -> list[tuple[str, ...]]:
    """A row for each format and dtype."""
    lines = []
    for dtype in ("float32", "bfloat16"):
        base = by_seed(results, "float32", dtype)
        for state_format in COLOURS:
            runs = by_seed(results, state_format, dtype)
            if not runs:
                continue
            final = {seed: r["validation_loss"][-1] for seed, r in sorted(runs.items())}
            mean, error = difference(runs, base) if state_format != "float32" else (None, None)
            lines.append(
                (
                    dtype,
                    state_format,
                    ", ".join(f"{loss:.4f}" for loss in final.values()),
                    f"{statistics.mean(final.values()):.4f}",
                    "" if mean is None else f"{mean:+.4f}",
                    "" if error is None else f"{error:.4f}",
                )
            )
    return lines


def draw(results: list[Result], path: Path) -> None:
    """The losses of x over the steps, and how much more than float32's they are, seed by seed."""
    figure, (losses, more) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    base = by_seed(results, "float32", "float32")
    for state_format, colour in COLOURS.items():
        for number, (seed, result) in enumerate(by_seed(results, state_format, "float32").items()):
            label = None if number else state_format
            steps, loss = result["step"], result["validation_loss"]
            losses.plot(steps, loss, color=colour, label=label, linewidth=1)
            if state_format != "float32" and seed in base:
                of_base = base[seed]["validation_loss"]
                values = [a - b for a, b in zip(loss, of_base, strict=True)]
                more.plot(steps, values, color=colour, label=label, linewidth=1)
    more.axhline(0, color=COLOURS["float32"], linewidth=1)
    losses.set(
        xlabel="steps",
        ylabel="validation loss of x (nats per byte)",
        title="A byte-level language model, three formats of state",
        yscale="log",
    )
    losses.set_yticks(ticks := (1.8, 1.9, 2.0, 2.2, 2.5), [f"{tick}" for tick in ticks])
    losses.minorticks_off()
    more.set(
        xlabel="steps",
        ylabel="more validation loss than in float32",
        title="Against float32, a line for each seed",
    )
    for axes in (losses, more):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
