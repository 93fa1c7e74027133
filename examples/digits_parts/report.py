"""What a finished run leaves behind: results.json, a table and a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
import numpy as np
from rich.table import Table

from digits_parts.optimizers import CHOICES, OptimizerName
from digits_parts.run import Line
from digits_parts.settings import Settings

mpl.use("Agg")  # no window

from matplotlib import pyplot as plt

RESULTS = "results.json"
PICTURE = "curves.png"
COLOURS = {
    OptimizerName.SGD_SCHEDULE_FREE: "tab:blue",
    OptimizerName.ADAMW_SCHEDULE_FREE: "tab:green",
    OptimizerName.SGD_COSINE: "tab:orange",
}


def save(folder: Path, settings: Settings, lines: list[Line]) -> None:
    """Write all settings, hyperparameters and results."""
    choices = {name: CHOICES[name]._asdict() for name in settings.optimizers}
    content = {
        "settings": asdict(settings),
        "hyperparameters": choices,
        "lines": [line._asdict() for line in lines],
    }
    (folder / RESULTS).write_text(json.dumps(content, indent=1) + "\n")


def final_lines(lines: list[Line], name: OptimizerName) -> list[Line]:
    """Those of the last epoch, one for each seed."""
    own = [line for line in lines if line.optimizer == name]
    last = max(line.epoch for line in own)
    return [line for line in own if line.epoch == last]


def table(settings: Settings, lines: list[Line]) -> Table:
    """The optimizers side by side, after the last epoch."""
    title = f"Epochs: {settings.epochs}. Seeds: {len(settings.seeds)}; mean ± standard deviation"
    result = Table(title=title)
    result.add_column("")
    rows: dict[str, list[str]] = {}
    for name in settings.optimizers:
        result.add_column(name, justify="right")
        for label, value in figures(name, settings, final_lines(lines, name)).items():
            rows.setdefault(label, []).append(value)
    for label, values in rows.items():
        result.add_row(label, *values)
    return result


def figures(name: OptimizerName, settings: Settings, final: list[Line]) -> dict[str, str]:
    """What the table says about one optimizer."""
    kind = str(settings.held_out)
    accuracies = [line.accuracy for line in final]
    return {
        "lr": f"{CHOICES[name].lr * settings.lr_factor:g}",
        "weight decay": f"{CHOICES[name].weight_decay:g}",
        f"{kind} accuracy, %": mean_and_spread(accuracies, percent=True),
        "lowest, highest": f"{100 * min(accuracies):.2f}, {100 * max(accuracies):.2f}",
        "no update_bn, %": mean_and_spread(
            [line.accuracy_old_statistics for line in final], percent=True
        ),
        f"{kind} loss": mean_and_spread([line.loss for line in final]),
    }


def mean_and_spread(values: list[float], *, percent: bool = False) -> str:
    """The mean and, of two values or more, their standard deviation."""
    scale, digits = (100, 2) if percent else (1, 4)
    mean = f"{scale * fmean(values):.{digits}f}"
    return f"{mean} ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else mean


def draw(folder: Path, settings: Settings, lines: list[Line]) -> Path:
    """Write the picture: means over the seeds, and bands from the lowest to the highest."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for name in settings.optimizers:
        own = [line for line in lines if line.optimizer == name]
        epochs = np.arange(1, settings.epochs + 1)
        by_epoch = [[line for line in own if line.epoch == epoch] for epoch in epochs]
        errors = np.array([[100 * (1 - line.accuracy) for line in some] for some in by_epoch])
        losses = np.array([[line.loss for line in some] for some in by_epoch])
        for axes, values in zip(panels, (losses, errors), strict=True):
            axes.plot(epochs, values.mean(axis=1), color=COLOURS[name], label=name)
            axes.fill_between(
                epochs, values.min(axis=1), values.max(axis=1), color=COLOURS[name], alpha=0.15
            )
    kind = str(settings.held_out)
    panels[0].set(xlabel="epoch", ylabel=f"{kind} loss (nats)", yscale="log")
    panels[1].set(xlabel="epoch", ylabel=f"{kind} error (%)", ylim=(0, 8))
    figure.suptitle(f"Handwritten digits, {len(settings.seeds)} seeds: mean, lowest and highest")
    for axes in panels:
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    path = folder / PICTURE
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
