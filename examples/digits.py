"""Train a small convolutional network with BatchNorm on scikit-learn's handwritten digits.

    python examples/digits.py

Nothing is downloaded. Schedule-Free SGD, Schedule-Free AdamW, and SGD with momentum and cosine decay
train the same networks on the same batches, one after the other, on the CPU. The run folder then holds
results.json and curves.png. ``digits_parts/run.py`` shows how to evaluate a model with BatchNorm at x.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import extras  # noqa: F401 ends the program if something is missing
import torch
import typer
from common import INTERRUPTED, Interrupt, new_folder
from digits_parts.data import HeldOut
from digits_parts.optimizers import Method, OptimizerName
from digits_parts.report import draw, save, table
from digits_parts.run import train_all
from digits_parts.settings import Settings
from rich.console import Console
from torch import nn


class Which(StrEnum):
    """Which optimizers train."""

    ALL = "all"
    SGD_SCHEDULE_FREE = OptimizerName.SGD_SCHEDULE_FREE.value
    ADAMW_SCHEDULE_FREE = OptimizerName.ADAMW_SCHEDULE_FREE.value
    SGD_COSINE = OptimizerName.SGD_COSINE.value


class Backend(StrEnum):
    """Backends of sfplus_kernels for tensors on the CPU."""

    CPU = "cpu"
    EAGER = "eager"


def main(
    optimizer: Annotated[
        Which, typer.Option(help="Which to train, one after the other.")
    ] = Which.ALL,
    backend: Annotated[
        Backend | None,
        typer.Option(help="Of the Schedule-Free optimizers. (default: the best available)"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every image is seen.")] = 12,
    batch: Annotated[int, typer.Option(min=2, max=512, help="Images in a batch.")] = 64,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many runs of each, from seeds 0, 1, and so on.")
    ] = 5,
    held_out: Annotated[
        HeldOut,
        typer.Option(
            help="Evaluate on the test images, or on some of the training images instead."
        ),
    ] = HeldOut.TEST,
    lr_factor: Annotated[
        float, typer.Option(help="Multiplies the learning rate of each optimizer.")
    ] = 1.0,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder. (default: date and time)")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
) -> None:
    """Train a small convolutional network with BatchNorm on handwritten digits.

    Schedule-Free SGD, Schedule-Free AdamW and SGD with cosine decay are compared in a table. Ctrl-C stops,
    and keeps nothing.
    """
    console = Console()
    if not 0 < lr_factor < float("inf"):
        raise typer.BadParameter(f"{lr_factor} is not a positive number.", param_hint="--lr-factor")
    settings = Settings(
        optimizers=tuple(OptimizerName) if optimizer is Which.ALL else (OptimizerName(optimizer),),
        epochs=epochs,
        batch=batch,
        seeds=tuple(range(seeds)),
        lr_factor=lr_factor,
        backend=backend.value if backend else None,
        held_out=held_out,
    )
    try:
        for kind in settings.optimizers:
            Method(kind, [nn.Parameter(torch.zeros(1))], 1, backend=settings.backend)
    except RuntimeError as error:
        raise typer.BadParameter(str(error), param_hint="--backend") from error
    torch.set_num_threads(1)  # so small a model is not worth sharing out; and the bits are the same
    with Interrupt() as interrupt:
        folder = new_folder(runs_dir, name)
        lines = train_all(settings, interrupt)
    if lines is None:
        folder.rmdir()
        console.print("Stopped; nothing was kept.")
        raise typer.Exit(INTERRUPTED)
    save(folder, settings, lines)
    draw(folder, settings, lines)
    console.print(table(settings, lines))
    console.print(f"Results are in {folder}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
