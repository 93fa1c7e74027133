"""Measure how normalised weights turn, beside what theory predicts: AdamW, AdamC and ScheduleFree+.

    python examples/drift.py

Nothing is downloaded. A network of three layers, each with a LayerNorm behind it, learns scikit-learn's
handwritten digits; a fifth of the labels is drawn anew in each batch, so that the gradients do not vanish.
``monitor_drift()`` says of the weights in front of the LayerNorms what one step does to them; docs/drift.md
has the theory. The run folder then holds figures.jsonl (of each optimizer the means over each hundredth of
the run) and drift.png.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import extras  # noqa: F401 ends the program if something is missing
import matplotlib as mpl
import torch
import typer
from common import new_folder
from digits_parts.data import load
from rich.console import Console
from rich.table import Table
from torch import Generator, nn

from sfplus_kernels import AdamC, AdamCScheduleFreePlus, AdamW
from sfplus_kernels.schedules import linear_decay

mpl.use("Agg")  # no window

from matplotlib import pyplot as plt

WIDTH, CLASSES, BATCH = 128, 10, 64
LR, DECAY, WARMUP = 3e-3, 1.0, 0.05
PLUS_DECAY = 50.0  # multiplied by gamma^2
NOISE = 0.2  # share of random labels
PARTS = 100  # of a run, of each of which the means are kept
COLOURS = {"AdamW": "tab:orange", "AdamC": "tab:green", "ScheduleFree+": "tab:blue"}


class Name(StrEnum):
    """Which optimizers train, one after the other."""

    ADAMW = "AdamW"
    ADAMC = "AdamC"
    SCHEDULE_FREE_PLUS = "ScheduleFree+"


def make_model(seed: int) -> tuple[nn.Sequential, list[nn.Parameter]]:
    """The network, and its weights that a normalisation follows."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    sizes = [64, WIDTH, WIDTH, WIDTH]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
    torch.random.set_rng_state(state)
    return model, [model[1].weight, model[4].weight, model[7].weight]  # type: ignore[list-item]


def make_optimizer(name: Name, groups: list[dict[str, Any]]) -> Any:
    """With the normalised weights in the first group, which alone decays."""
    if name is Name.ADAMW:
        return AdamW(groups, lr=LR, weight_decay=DECAY)
    if name is Name.ADAMC:
        return AdamC(groups, lr=LR, weight_decay=DECAY, max_lr=LR)
    groups[0]["weight_decay"] = PLUS_DECAY
    return AdamCScheduleFreePlus(groups, warmup_steps=100)


def train(name: Name, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """The figures of each step."""
    digits, generator = load(), Generator().manual_seed(seed)
    model, normalized = make_model(seed)
    own = set(map(id, normalized))
    rest = [p for p in model.parameters() if id(p) not in own]
    groups = [{"params": normalized}, {"params": rest, "weight_decay": 0.0}]
    optimizer = make_optimizer(name, groups)
    optimizer.monitor_drift()
    optimizer.train()
    for step in range(steps):
        if name is not Name.SCHEDULE_FREE_PLUS:
            for group in optimizer.param_groups:
                group["lr"] = LR * linear_decay(step, steps, warmup_steps=round(WARMUP * steps))
        images = torch.randint(len(digits.train_labels), (BATCH,), generator=generator)
        labels = digits.train_labels[images].clone()
        noisy = torch.rand(BATCH, generator=generator) < NOISE
        labels[noisy] = torch.randint(CLASSES, (int(noisy.sum()),), generator=generator)
        loss = nn.functional.cross_entropy(model(digits.train_images[images]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach())
        figures = optimizer.metrics()
        yield {
            "optimizer": name.value,
            "step": step + 1,
            "loss": float(loss.detach()),
            "gamma": figures["scheduled_lr"][0],
            **{
                key.removeprefix("group_"): values[0]
                for key, values in figures.items()
                if key.startswith("group_") and "grad_ratio" not in key
            },
        }


def means(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means over each hundredth of a run, at its last step."""
    size = max(1, len(lines) // PARTS)
    parts = [lines[start : start + size] for start in range(0, len(lines) - size + 1, size)]
    return [
        {
            key: value if key in ("optimizer", "step") else fmean(line[key] for line in part)
            for key, value in part[-1].items()
        }
        for part in parts
    ]


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Rotation beside its prediction, the norm of the weights, that of the gradient."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, lines in runs.items():
        steps = [line["step"] for line in lines]
        for axis, key, style, label in (
            (axes[0], "rotation", "-", name),
            (axes[0], "steady_update_ratio", "--", f"{name}, predicted"),
            (axes[1], "weight_norm", "-", name),
            (axes[2], "grad_norm", "-", name),
        ):
            values = [line[key] for line in lines]
            axis.plot(steps, values, style, color=COLOURS[name], lw=1.2, label=label)
    for axis, title in zip(
        axes,
        ("rotation per step, radians", "norm of the weights", "norm of the gradient"),
        strict=True,
    ):
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(runs: dict[str, list[dict[str, Any]]]) -> Table:
    """The means at the middle of the run, and at its end."""
    result = Table(title="Means over a hundredth of the run")
    for column in ("", "at step", "rotation", "predicted", "ratio", "weights", "gradient", "loss"):
        result.add_column(column)
    for name, lines in runs.items():
        for line in (lines[len(lines) // 2 - 1], lines[-1]):
            predicted = line["steady_update_ratio"]
            result.add_row(
                name,
                f"{line['step']:,}",
                f"{line['rotation']:.5f}",
                f"{predicted:.5f}",
                f"{line['rotation'] / predicted:.2f}" if predicted > 0 else "",
                f"{line['weight_norm']:.2f}",
                f"{line['grad_norm']:.3f}",
                f"{line['loss']:.3f}",
            )
    return result


def main(
    steps: Annotated[int, typer.Option(min=20, help="Steps of each optimizer.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Decides weights, batches and labels.")] = 0,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder. (default: date and time)")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
) -> None:
    """Measure how normalised weights turn, beside what theory predicts."""
    torch.set_num_threads(1)  # so small a model is not worth sharing out; and the bits are the same
    folder = new_folder(runs_dir, name)
    runs: dict[str, list[dict[str, Any]]] = {}
    with (folder / "figures.jsonl").open("w") as file:
        for kind in Name:
            runs[kind.value] = means(list(train(kind, steps, seed)))
            file.writelines(json.dumps(line) + "\n" for line in runs[kind.value])
    draw(runs, folder / "drift.png")
    console = Console()
    console.print(table(runs))
    console.print(f"Results are in {folder}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
