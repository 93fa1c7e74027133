"""Gradient norms from files: JSON lines, CSV, a Trainer's trainer_state.json."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sfplus_kernels.schedules.refinement import Norm

COLUMNS: dict[Norm, tuple[str, ...]] = {
    "l2": ("grad_norm", "train/grad_norm", "gradient_norm"),
    "l1": ("grad_l1", "train/grad_l1", "grad_norm_l1"),
}
STEPS = ("step", "global_step", "k", "iteration", "steps")


def read_norms(path: str | Path, *, norm: Norm = "l2", column: str | None = None) -> list[float]:
    """The gradient norms in a file, for `refine`.

    By its name: ``.jsonl`` has one object a line, as ``json.dumps(optimizer.metrics())`` writes them;
    ``.csv`` has a line of names first; ``.json`` is a Trainer's trainer_state.json.

    Args:
        path: the file. Lines without a norm are left out: those of validation, for example.
        norm: ``"l2"`` or ``"l1"``: which columns are looked for.
        column: name of the column; None for the first usual one that there is.

    Raises:
        ValueError: the file is not what its name says, has no such column, something else than numbers
            in it, or steps that do not rise.
    """
    path = Path(path)
    if norm not in COLUMNS:
        raise ValueError(f"norm={norm!r}; expected 'l2' or 'l1'")
    rows = rows_of(path)
    there = list(dict.fromkeys(key for row in rows for key in row))
    name = first(COLUMNS[norm] if column is None else (column,), there)
    if name is None:
        raise ValueError(
            f"{path} has no column {column or ' or '.join(COLUMNS[norm])}; it has "
            f"{', '.join(map(str, there)) or 'no lines'}. Say which with column="
        )
    kept = [row for row in rows if row.get(name) not in (None, "")]
    step = first(STEPS, there)
    try:
        norms = [float(row[name]) for row in kept]
        steps = (
            [float(row[step]) for row in kept if row.get(step) not in (None, "")] if step else []
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, column {name} or {step}: {error}; expected numbers") from error
    for last, now in pairwise(steps):
        if not last < now:
            raise ValueError(
                f"{path}: step {now:g} comes after step {last:g}; expected one run whose steps rise. "
                "Leave out the lines of other runs, and those that a resumed run wrote a second time"
            )
    return norms


def first(names: Sequence[str], there: Sequence[str]) -> str | None:
    """The first of the names that is there."""
    return next((name for name in names if name in there), None)


def rows_of(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a file."""
    if path.suffix not in (".jsonl", ".csv", ".json"):
        raise ValueError(
            f"{path}: expected .jsonl, .csv, or .json (a Trainer's trainer_state.json)"
        )
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    text = path.read_text()
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(text.splitlines()))
        if path.suffix == ".json":
            return [dict(row) for row in json.loads(text)["log_history"]]
        return [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what its name says ({type(error).__name__}: {error}); expected JSON lines "
            "(.jsonl), CSV (.csv) or a Trainer's trainer_state.json (.json, with log_history)"
        ) from error
