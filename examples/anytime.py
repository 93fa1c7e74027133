"""Anytime training: one Schedule-Free run for every length against AdamW tuned and run for each.

    python examples/anytime.py list               # the plan, and what of it is done
    python examples/anytime.py run --resume       # the next points, one after the other
    python examples/anytime.py run --only NAME    # that point again
    python examples/anytime.py report             # tables and charts from all that is done
    python examples/anytime.py forecasts          # the forecast, tried on all that is done

The plan is anytime_parts/plan.toml; each finished point is one small file in anytime_results. Nothing is
downloaded: the text is the Python source of the environment that the tests use.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import extras  # noqa: F401 ends the program if something is missing
import torch
import typer
from anytime_parts.charts import draw
from anytime_parts.corpus import Corpus
from anytime_parts.forecasts import summary, try_all
from anytime_parts.plan import PLAN, Point, read_plan
from anytime_parts.report import COLUMNS, TABLE, load, rows, write_table
from anytime_parts.run import Run, commit_of, write
from rich.console import Console
from rich.table import Table

import sfplus_kernels

RESULTS = Path(__file__).with_name("anytime_results")
app = typer.Typer(add_completion=False, help=__doc__)

PlanFile = Annotated[Path, typer.Option("--plan", help="The plan.")]
Results = Annotated[Path, typer.Option(help="Where result files go.")]


@app.command("list")
def list_points(plan: PlanFile = PLAN, results: Results = RESULTS) -> None:
    """Show every point of the plan and, if it is done, its last validation loss."""
    for point in read_plan(plan):
        path = results / f"{point.name}.json"
        typer.echo(f"{outcome(path):>8}  {point.stage:8}  {point.described()}")


def outcome(path: Path) -> str:
    """In a word."""
    if not path.exists():
        return "-"
    result = json.loads(path.read_text())
    return (
        "diverged" if result["diverged"] else f"{result['evaluations'][-1]['validation_loss']:.4f}"
    )


@app.command()
def run(
    plan: PlanFile = PLAN,
    results: Results = RESULTS,
    only: Annotated[
        str | None, typer.Option(help="Run this point alone, also if it is done.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the point that a stop cut off.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Keep the text in this file, so that it stays the same.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0, help="Begin no point after so long.")] = 1e9,
) -> None:
    """Run the points that have no result file yet, in the order of the plan, on one thread."""
    torch.set_num_threads(1)
    corpus = Corpus.load(cache)
    fingerprint = corpus.fingerprint()
    commit = commit_of(Path(sfplus_kernels.__file__).parent)
    results.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 3600 * hours
    typer.echo(
        f"{len(corpus.train):,} bytes to train on, {len(corpus.validation):,} to validate; text "
        f"{fingerprint}, commit {commit}"
    )
    while time.monotonic() < end and (point := next_point(read_plan(plan), results, only)):
        typer.echo(f"{time.strftime('%H:%M:%S')} {point.described()}")
        save = results / f"{point.name}.partial"
        current = Run(point, corpus)
        if resume and save.exists():
            current.restore(torch.load(save, weights_only=True))
            typer.echo(f"  goes on at step {current.done:,}")
        current.train(save, typer.echo)
        path = results / f"{point.name}.json"
        write(path, current.result(fingerprint, commit))
        save.unlink(missing_ok=True)
        typer.echo(
            f"  {outcome(path)} in {current.seconds:.0f} s ({current.cpu_seconds:.0f} of CPU)"
        )
        if only:
            return
    typer.echo("Nothing of the plan is left.")


@app.command()
def report(
    results: Results = RESULTS,
    chart: Annotated[Path, typer.Option(help="Where the chart goes.")] = Path("anytime.png"),
) -> None:
    """Print and write the best of each optimizer at each length, with its seeds; draw the charts."""
    found = load(results)
    if not found:
        raise typer.BadParameter(f"no results in {results}", param_hint="--results")
    table = Table(*COLUMNS)
    for row in rows(found):
        table.add_row(*row)
    Console().print(table)
    write_table(found, results)
    draw(found, chart)
    typer.echo(f"written to {results / TABLE}, drawn in {chart}")


@app.command()
def forecasts(
    results: Results = RESULTS,
    rate: Annotated[
        bool, typer.Option("--rate", help="Show it AdamW's learning rate, too.")
    ] = False,
) -> None:
    """Forecast the end of every finished run from its first 10, 25 and 50 %, and compare."""
    table = Table("optimizer", "seen", "runs", "refused", "interval held", "error", "half width")
    for row in summary(try_all(load(results), rate)):
        table.add_row(*row)
    Console().print(table)


def next_point(points: list[Point], results: Path, only: str | None) -> Point | None:
    """The first without a result, or the one that is named."""
    if only is None:
        return next((p for p in points if not (results / f"{p.name}.json").exists()), None)
    for point in points:
        if point.name == only:
            return point
    raise typer.BadParameter(
        f"{only} is not in the plan; `list` shows what is.", param_hint="--only"
    )


if __name__ == "__main__":
    app()
