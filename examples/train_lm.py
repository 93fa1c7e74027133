"""Train a small byte-level language model on the source of Python's standard library.

    python examples/train_lm.py

Nothing is downloaded. By default ScheduleFree+ and AdamW train the same model on the same text, one after
the other; the run folder then holds config.json, metrics.jsonl (one line per step), checkpoint.pt and
loss.png. On a CPU, times are wall time; on a GPU they are the GPU's own, from CUDA events.

    torchrun --nproc-per-node 2 examples/train_lm.py --parallel fsdp

Several processes train the same run, each on its share of every batch, and it has the same losses to
rounding; ddp, fsdp and hsdp say what each holds of the model. The checkpoint is then a folder, from which
another number of processes can go on.
"""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import extras  # noqa: F401 ends the program if something is missing
import torch
import typer
from common import INTERRUPTED, new_folder
from lm.data import Corpus
from lm.model import HEAD_DIM
from lm.optimizers import make_method
from lm.parallel import Processes
from lm.report import draw, table
from lm.run import train_all
from lm.settings import COMPARED, CONFIG, OptimizerName, Parallel, Settings
from rich.console import Console
from torch import nn


class Choice(StrEnum):
    """Which optimizers train."""

    BOTH = "both"
    SCHEDULE_FREE_PLUS = OptimizerName.SCHEDULE_FREE_PLUS.value
    ADAMW = OptimizerName.ADAMW.value
    ADAMW_SCHEDULE_FREE = OptimizerName.ADAMW_SCHEDULE_FREE.value


class Backend(StrEnum):
    """Backends of sfplus_kernels."""

    CPU = "cpu"
    CUDA = "cuda"
    TRITON = "triton"
    EAGER = "eager"


def main(
    context: typer.Context,
    optimizer: Annotated[
        Choice, typer.Option(help="Which to train; both is schedule-free-plus, then adamw.")
    ] = Choice.BOTH,
    backend: Annotated[
        Backend | None,
        typer.Option(help="Of the Schedule-Free optimizers. (default: the best available)"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Such as cpu or cuda:1. (default: cuda if there is one, else cpu)"),
    ] = None,
    parallel: Annotated[
        Parallel | None,
        typer.Option(
            help="Several processes, started by torchrun, train one model; each holds all of it (ddp), a "
            "share (fsdp) or a share of one of two copies (hsdp). (default: one process)"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each optimizer.")] = 1500,
    batch: Annotated[
        int, typer.Option(min=1, help="Sequences in a batch, which the processes share equally.")
    ] = 32,
    seed: Annotated[
        int, typer.Option(min=0, help="Decides the first weights and the order of the text.")
    ] = 0,
    lr_factor: Annotated[
        float, typer.Option(help="Multiplies the learning rate of each optimizer.")
    ] = 1.0,
    name: Annotated[
        str | None, typer.Option(help="Name of the run folder. (default: date and time)")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the interrupted run in this folder, with its settings, as if it had never "
            "stopped (on a CPU: to the last bit). Takes no other option; a run of several processes may go "
            "on with another number of them (then equal to rounding)."
        ),
    ] = None,
    dim: Annotated[int, typer.Option(help=f"Width of the model, a multiple of {HEAD_DIM}.")] = 32,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = 1,
    length: Annotated[int, typer.Option("--context", min=2, help="Bytes in a sequence.")] = 64,
    eval_every: Annotated[
        int, typer.Option(min=1, help="Steps between evaluations, with a checkpoint.")
    ] = 250,
    eval_batches: Annotated[int, typer.Option(min=1, help="Batches in an evaluation.")] = 32,
    log_every: Annotated[
        int, typer.Option(min=1, help="Steps between log lines with the step size.")
    ] = 10,
) -> None:
    """Train a small byte-level language model on the source of Python's standard library.

    ScheduleFree+ and AdamW train the same model on the same text; a table compares them. Ctrl-C saves
    and stops; --resume goes on.
    """
    console = Console()
    try:
        corpus = Corpus.load()
    except RuntimeError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    if resume:
        folder = resume
        settings = resumed_settings(context, resume, corpus)
    else:
        if not 0 < lr_factor < float("inf"):
            raise typer.BadParameter(
                f"{lr_factor} is not a positive number.", param_hint="--lr-factor"
            )
        if dim < HEAD_DIM or dim % HEAD_DIM:
            raise typer.BadParameter(f"{dim} is not a multiple of {HEAD_DIM}.", param_hint="--dim")
        settings = Settings(
            optimizers=COMPARED if optimizer is Choice.BOTH else (OptimizerName(optimizer),),
            backend=backend.value if backend else None,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            steps=steps,
            batch=batch,
            seed=seed,
            lr_factor=lr_factor,
            dim=dim,
            layers=layers,
            context=length,
            eval_every=eval_every,
            eval_batches=eval_batches,
            log_every=log_every,
            threads=torch.get_num_threads(),
            corpus=corpus.fingerprint(),
            parallel=parallel,
        )
    processes = Processes(settings.parallel)
    check_usable(settings, processes)

    torch.set_num_threads(settings.threads)
    with processes.joined(settings.device):
        if not resume:
            folder = made_folder(settings, processes, runs_dir, name)
        finished = train_all(settings, folder, corpus, processes)
    if not finished:
        command = shlex.join([*processes.command(sys.argv[0]), "--resume", str(folder)])
        if processes.first:
            console.print(
                f"Stopped, and saved. To go on: {command}", soft_wrap=True, highlight=False
            )
        raise typer.Exit(INTERRUPTED)
    if not processes.first:
        return
    draw(folder, settings)
    console.print(table(folder))
    console.print(f"Results are in {folder}", soft_wrap=True, highlight=False)


def made_folder(settings: Settings, processes: Processes, runs_dir: Path, name: str | None) -> Path:
    """The run folder with the settings in it, which the first process makes and names."""
    folder, refusal = None, None
    if processes.first:
        try:
            advice = "take another name, or go on with --resume {folder}"
            folder = new_folder(runs_dir, name, advice)
            settings.save(folder)
        except typer.BadParameter as error:
            refusal = error
    folder = processes.from_first(folder)
    if folder is None:
        raise refusal or typer.Exit(2)  # the first process says why
    return folder


def check_usable(settings: Settings, processes: Processes) -> None:
    """Refuse processes, a device or a backend that cannot run here, before anything is written."""
    try:
        processes.check(settings.batch, settings.device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        weight = nn.Parameter(torch.zeros(1, device=processes.own_device(settings.device)))
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise typer.BadParameter(f"{settings.device}: {error}", param_hint="--device") from error
    try:
        for name in settings.optimizers:
            make_method(name, [weight], settings)
    except (RuntimeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--backend") from error


def is_given(context: typer.Context, key: str) -> bool:
    """Whether the option stands on the command line."""
    source = context.get_parameter_source(key)
    return source is not None and source.name == "COMMANDLINE"


def resumed_settings(context: typer.Context, folder: Path, corpus: Corpus) -> Settings:
    """The settings of an interrupted run, if nothing here contradicts them."""
    given = [key for key in context.params if key != "resume" and is_given(context, key)]
    if given:
        raise typer.BadParameter(
            f"the run keeps its settings; leave out {', '.join(given)}.", param_hint="--resume"
        )
    if not (folder / CONFIG).is_file():
        raise typer.BadParameter(f"{folder} has no {CONFIG}.", param_hint="--resume")
    try:
        settings = Settings.load(folder)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--resume") from error
    if settings.corpus != corpus.fingerprint():
        raise typer.BadParameter(
            f"{folder} was trained on the library of another Python version.", param_hint="--resume"
        )
    return settings


if __name__ == "__main__":
    typer.run(main)
