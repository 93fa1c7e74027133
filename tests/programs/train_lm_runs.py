"""Runs of examples/train_lm.py within this process, and what they leave behind."""

import json
import os
import re
from pathlib import Path
from typing import Any

import train_lm
import typer
from lm import files
from support import ROOT, search_path
from typer.testing import CliRunner

# One thread: these models are too small to share out, and waiting threads slow each other down.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
ENVIRONMENT["PYTHONPATH"] = search_path(ROOT / "examples")
TINY = ["--dim", "32", "--layers", "1", "--context", "16", "--batch", "4", "--device", "cpu"]
TINY += ["--backend", "cpu", "--eval-every", "8", "--eval-batches", "2", "--log-every", "4"]
STEPS = 24

app = typer.Typer()
app.command()(train_lm.main)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "1000"})  # no line breaks
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\x1b\[[\d;]*m", "", result.output)  # no colours


def tiny(runs: Path, name: str, *arguments: str, steps: int = STEPS) -> list[str]:
    """The command line of a run that takes a moment."""
    return [*TINY, "--steps", str(steps), "--runs-dir", str(runs), "--name", name, *arguments]


def train(runs: Path, name: str, *arguments: str, steps: int = STEPS) -> Path:
    code, output = invoke(*tiny(runs, name, *arguments, steps=steps))
    assert code == 0, output
    assert f"Results are in {runs / name}" in output
    return runs / name


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines without what no two runs have in common."""
    lines = [json.loads(text) for text in (folder / files.METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]
