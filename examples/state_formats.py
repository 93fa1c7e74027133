"""What each ``state_format`` costs in quality: a language model over 20,000 steps, in all of them.

    python examples/state_formats.py run        # what the results lack, 1 to 2 minutes each on one core
    python examples/state_formats.py report     # the table and the chart

Nothing is downloaded: the text is the Python source of the environment that the tests use. Every run with
the same seed has the same first weights and the same batches; each finished run is one line of
state_format_results.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import extras  # noqa: F401 ends the program if something is missing
import torch
import typer
from anytime_parts.corpus import Corpus
from rich.console import Console
from rich.table import Table
from state_format_parts.report import COLUMNS, draw, load, rows
from state_format_parts.run import Run, train

RESULTS = Path(__file__).with_name("state_format_results.jsonl")
FORMATS = ("float32", "16bit", "8bit")
app = typer.Typer(add_completion=False, help=__doc__)

Results = Annotated[Path, typer.Option(help="The results: one line a run.")]


@app.command()
def run(
    results: Results = RESULTS,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    dtype: Annotated[str, typer.Option(help="Of the parameters: float32 or bfloat16.")] = "float32",
    steps: Annotated[int, typer.Option(min=1)] = Run.steps,
    cache: Annotated[
        Path | None, typer.Option(help="Keep the text in this file, so that it stays the same.")
    ] = None,
) -> None:
    """Train what the results do not have yet, on one thread, seed by seed."""
    torch.set_num_threads(1)
    corpus = Corpus.load(cache)
    for seed in range(seeds):
        for state_format in FORMATS:
            wanted = Run(state_format, dtype, seed, steps)
            if any(line["run"] == wanted for line in load(results)):
                continue
            line = train(wanted, corpus)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            final = line["validation_loss"][-1]
            typer.echo(f"{wanted}: validation loss {final}, {line['cpu_seconds']} s of CPU")


@app.command()
def report(
    results: Results = RESULTS,
    chart: Annotated[Path, typer.Option(help="Where the chart goes.")] = Path("state-formats.png"),
) -> None:
    """Compare the loss at the end with float32's, seed by seed, and draw the way there."""
    found = load(results)
    if not found:
        raise typer.BadParameter(f"no results in {results}", param_hint="--results")
    table = Table(*COLUMNS)
    for row in rows(found):
        table.add_row(*row)
    Console().print(table)
    draw(found, chart)
    typer.echo(f"drawn in {chart}")


if __name__ == "__main__":
    app()
