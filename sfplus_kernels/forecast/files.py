"""Loss curves from files: JSON lines, CSV, a Trainer's trainer_state.json, TensorBoard's event files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfplus_kernels.forecast.curve import CannotForecast, LossCurve, checked

STEPS = ("step", "global_step", "iteration", "steps")
LOSSES = ("loss", "train_loss", "train/loss", "training_loss", "loss/train")
RATES = ("lr", "learning_rate", "train/learning_rate", "train/lr")
Row = Mapping[str, Any]


def read(
    path: str | Path,
    *,
    step: str | None = None,
    loss: str | None = None,
    rate: str | None = None,
    where: Mapping[str, str] | None = None,
) -> LossCurve:
    """The training loss in a file.

    By its name: ``.jsonl`` has one object a line, ``.csv`` a line of names first, ``.json`` is a Trainer's
    trainer_state.json (its losses are means since the last line, and are put at the middle of those steps);
    a folder or a file with ``tfevents`` in its name is TensorBoard's, and takes the tensorboard package.

    Args:
        step, loss, rate: names of columns; None for the first usual one that there is. Lines without a
            step or a loss are left out. ``lr`` is a rate, ``gamma`` is none: an optimizer chose it.
        where: only lines in which these columns have these values, as text.

    Raises:
        CannotForecast: the file does not hold such a curve.
    """
    path = Path(path)
    if not path.exists():
        raise CannotForecast(f"{path} does not exist")
    if path.is_dir() or "tfevents" in path.name:
        if where:
            raise CannotForecast(
                "where chooses among lines of text; a TensorBoard run has one line a step"
            )
        return read_events(path, loss, rate)
    rows, is_mean = text_rows(path)
    if where:
        rows = [r for r in rows if all(str(r.get(key)) == value for key, value in where.items())]
    step = chosen(step, STEPS, rows, path, "step")
    loss = chosen(loss, LOSSES, rows, path, "loss")
    kept = [row for row in rows if is_given(row, step) and is_given(row, loss)]
    rate = rate or next((name for name in RATES if kept and is_given(kept[-1], name)), None)
    steps = numbers(kept, step, path)
    rates = None if rate is None else numbers(kept, rate, path)
    curve = checked(steps, numbers(kept, loss, path), rates)
    if is_mean:
        middle = (np.concatenate([[0.0], curve.step[:-1]]) + curve.step) / 2
        curve = curve._replace(step=middle)
    return curve


def text_rows(path: Path) -> tuple[list[Row], bool]:
    """The lines of a file, and whether each loss is a mean since the line before."""
    text = path.read_text()
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(text.splitlines())), False
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()], False
        if path.suffix == ".json":
            return list(json.loads(text)["log_history"]), True
    except (ValueError, KeyError, TypeError) as error:
        raise CannotForecast(
            f"{path} is not what its name says ({type(error).__name__}: {error}); expected JSON lines "
            "(.jsonl), "
            "CSV (.csv) or a Trainer's trainer_state.json (.json, with log_history)"
        ) from error
    raise CannotForecast(
        f"{path}: expected .jsonl, .csv, .json (a Trainer's trainer_state.json), or a TensorBoard folder"
    )


def is_given(row: Row, name: str) -> bool:
    """Whether the line has this column, and something in it."""
    return row.get(name) not in (None, "")


def chosen(
    name: str | None, usual: Sequence[str], rows: Sequence[Row], path: Path, what: str
) -> str:
    """The column's name."""
    found = list(dict.fromkeys(key for row in rows for key in row))
    for candidate in usual if name is None else (name,):
        if candidate in found:
            return candidate
    raise CannotForecast(
        f"{path} has no column {name or ' or '.join(usual)}; it has "
        f"{', '.join(map(str, found)) or 'no lines'}. "
        f"Say which is the {what}"
    )


def numbers(rows: Sequence[Row], name: str, path: Path) -> list[float]:
    """A column; a line without it has NaN."""
    try:
        return [float(row[name]) if is_given(row, name) else float("nan") for row in rows]
    except (TypeError, ValueError) as error:
        raise CannotForecast(f"{path}, column {name}: {error}; expected numbers") from error


def read_events(path: Path, loss: str | None, rate: str | None) -> LossCurve:
    """A TensorBoard run: a tag is a column."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise CannotForecast(
            f"{path} is TensorBoard's; to read it: pip install tensorboard"
        ) from error
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()  # 0: all of them
    tags = events.Tags()["scalars"]
    row = dict.fromkeys(tags, 1)
    loss = chosen(loss, LOSSES, [row] if row else [], path, "loss")
    rate = rate or next((name for name in RATES if name in tags), None)
    losses = {event.step: event.value for event in events.Scalars(loss)}
    rates = {event.step: event.value for event in events.Scalars(rate)} if rate else {}
    steps = sorted(losses)
    found = [rates.get(step, float("nan")) for step in steps] if rates else None
    return checked(steps, [losses[step] for step in steps], found)
