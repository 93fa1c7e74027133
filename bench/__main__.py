"""python -m bench: measure, and leave JSON, CSV, plots and a report."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

# what the profiler and its allocator say about themselves
os.environ.setdefault("KINETO_LOG_LEVEL", "9")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.contestants.all import contestants
from bench.contestants.peers import PEERS
from bench.measure.budgets import LATE
from bench.measure.plan import chosen_workloads, parts
from bench.measure.quiet import Weather
from bench.measure.sections import Bench
from bench.record import rows, table
from bench.record.provenance import ROOT, collect
from bench.record.rows import Row
from bench.report import page, plots

RESULTS = ROOT / "bench" / "results"


def main(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Small, to see that everything runs; no figures to keep."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1. (default: cuda if there is one)")
    ] = None,
    optimizers: Annotated[
        str, typer.Option(help="Those with one of these, separated by commas, in their names.")
    ] = "",
    workloads: Annotated[
        str, typer.Option(help="Names, separated by commas; leaves the scaling curves out.")
    ] = "",
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Begin no part of the run after so many, and hurry before. What was measured is kept."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. (default: bench/results/DATE-DEVICE)"),
    ] = None,
) -> None:
    """Time one step of each optimizer against the memory's bandwidth and against its peers."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=where)
        racers = contestants(where, optimizers)
        races = chosen_workloads(where.type, quick, workloads)
    except (ValueError, RuntimeError, AssertionError) as error:  # no such device: any of the three
        typer.echo(f"Error: {str(error).splitlines()[0]}", err=True)
        raise typer.Exit(2) from error
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    folder = (
        out or RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{where.type}{'-quick' if quick else ''}"
    )

    about: dict[str, Any] = {"quick": quick, "optimizers": optimizers, "workloads": workloads}
    weather = Weather()
    start = time.perf_counter()
    provenance = collect(where, tuple(peer.module.partition(".")[0] for peer in PEERS))
    console.print(
        f"{table.device_line(provenance)}, commit {provenance['commit']}", highlight=False
    )
    path = folder

    def save(found: list[Row], parts: dict[str, float], left_out: list[str]) -> None:
        nonlocal path
        about["seconds_of_parts"], about["left_out"] = parts, left_out
        about["seconds"] = round(time.perf_counter() - start, 1)
        about["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        about["machine"] = weather.found(found)
        about["above_ceilings"] = rows.above_ceilings(found)
        for row in found:
            row.provenance = provenance
        path = rows.write(folder, found, about)

    until = None if seconds is None else time.monotonic() + seconds
    bench = Bench(where, racers, quick)
    run(bench, races, scaling=not workloads, console=console, save=save, until=until)

    saved = rows.read(path)
    for workload in saved.workloads("step")[:1]:
        console.print(step_table(saved, workload, console.width))
    if remarks := table.remarks(saved.about):
        console.print(f"[bold]{remarks}[/bold]", soft_wrap=True, highlight=False)
    plots.draw(saved, folder)
    written = page.write(saved, folder)
    console.print(f"{about['seconds']:.0f} s. Report: {written}", soft_wrap=True, highlight=False)


def run(
    bench: Bench,
    races: list,
    *,
    scaling: bool,
    console: Console,
    save: Callable[[list[Row], dict[str, float], list[str]], None],
    until: float | None = None,
) -> list[Row]:
    """All parts of the run, under a progress bar.

    Args:
        save: called after each part, so that a run that is stopped leaves what it has: with all rows so
            far, the seconds of each part, and the titles of those that have not begun.
        until: no part begins after this time by ``time.monotonic()``, but the first two.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rounds]} rounds"),
        TimeElapsedColumn(),
    )
    todo = parts(bench, races, scaling=scaling)
    found: list[Row] = []
    taken: dict[str, float] = {}
    # refreshed between rounds: a thread of its own would take time from them
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(todo), rounds=0)
        done, shown = 0, time.monotonic()

        def tick() -> None:
            nonlocal done, shown
            done += 1
            if time.monotonic() > shown + 1:
                shown = time.monotonic()
                progress.update(task, rounds=done, refresh=True)

        bench.tick = tick
        for index, (title, part) in enumerate(todo):
            if until is not None and time.monotonic() > until and index > 1:
                left_out = ", ".join(title for title, _ in todo[index:])
                console.print(f"no time for {len(todo) - index} of {len(todo)} parts: {left_out}")
                break
            progress.update(task, description=f"{title:28}", refresh=True)
            begun = time.monotonic()
            bench.late = until is not None and until - begun < LATE * (len(todo) - index)
            found += part()
            taken[title] = round(time.monotonic() - begun, 1)
            save(found, taken, [title for title, _ in todo[index + 1 :]])
            progress.update(task, advance=1, rounds=done, refresh=True)
    return found


def step_table(saved: rows.Run, workload: str, width: int) -> Table:
    """The workload in which every contestant took part."""
    ok = saved.section("step", workload)
    untimed = [
        f"{r.name} ({r.status})" for r in saved.rows if r.status in ("absent", "wrong", "failed")
    ]
    caption = "taken in turns, caches cold; bytes are counted, not measured"
    if untimed:
        caption += f"\nnot timed: {', '.join(dict.fromkeys(untimed))}"
    title = f"One step over {ok[-1].n_params / 1e6:.1f} M parameters ({workload})"
    shown = Table(title=title, caption=caption)
    heading, *lines = table.fitting(ok, width)
    for name in heading:
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row, line in zip(ok, lines, strict=True):
        shown.add_row(*line, style="bold" if row.ours else None)
    return shown


if __name__ == "__main__":
    typer.run(main)
