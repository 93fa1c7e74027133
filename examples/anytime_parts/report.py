"""What the finished points say, as a table; charts.py draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anytime_parts.plan import CAPPED

Result = dict[str, Any]
Kind = tuple[str, str | None]
COLUMNS = ("model", "batch", "optimizer", "bytes/param", "tried", "loss by seed", "settings")
TABLE = "README.md"  # among the result files
HEAD = """# Every point that was run

Written by `python examples/anytime.py report` from the files beside it. For each model, batch (times 2,048
bytes), optimizer and length (bytes per parameter): how many settings were tried with seed 0, the validation
loss (nats per byte) of the best of them, by seed, and its settings. A Schedule-Free run is read off at every
length that it passes, so the best of one length may be another run than that of the next.
"""


def load(folder: Path) -> list[Result]:
    """All results, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def losses(result: Result) -> dict[int, float]:
    """Validation loss by tokens per parameter; nothing of a run that diverged."""
    if result["diverged"]:
        return {}
    return {e["tokens_per_parameter"]: e["validation_loss"] for e in result["evaluations"]}


def kinds(results: list[Result]) -> dict[Kind, list[Result]]:
    """The runs of each optimizer and schedule; with a cap on gamma it is another optimizer."""
    found: dict[Kind, list[Result]] = {}
    for result in results:
        point = result["point"]
        name = CAPPED if "max_lr" in point["settings"] else point["optimizer"]
        found.setdefault((name, point["schedule"]), []).append(result)
    return found


def best(runs: list[Result], length: int) -> Result | None:
    """The run with the lowest loss at that length."""
    done = [run for run in runs if length in losses(run)]
    return min(done, key=lambda run: losses(run)[length], default=None)


def rows(results: list[Result]) -> list[tuple[str, ...]]:
    """For each model, batch, optimizer and length: how many settings were tried, the best, and its seeds."""
    lines = []
    for model, batch in sorted({(r["point"]["model"], r["point"]["batch"]) for r in results}):
        here = [r for r in results if (r["point"]["model"], r["point"]["batch"]) == (model, batch)]
        lengths = sorted({r["point"]["length"] for r in here})
        for (optimizer, schedule), runs in kinds(here).items():
            first = [run for run in runs if run["point"]["seed"] == 0]
            for length in lengths:
                found = best(first, length)
                if found is None:
                    continue
                settings = found["point"]["settings"]
                same = [
                    r for r in runs if r["point"]["settings"] == settings and length in losses(r)
                ]
                # a Schedule-Free run is read off at every length that it passes
                tried = [r for r in first if reaches(r, length)]
                values = {r["point"]["seed"]: losses(r)[length] for r in same}
                lines.append(
                    (
                        model,
                        str(batch),
                        f"{optimizer} {schedule or ''}".strip(),
                        str(length),
                        str(len({json.dumps(r["point"]["settings"]) for r in tried})),
                        ", ".join(f"{value:.3f}" for _, value in sorted(values.items())),
                        " ".join(f"{key}={value:g}" for key, value in settings.items()),
                    )
                )
    return lines


def reaches(result: Result, length: int) -> bool:
    """Whether the run was one for this length, or passes it."""
    point = result["point"]
    return point["length"] == length or (point["schedule"] is None and point["length"] > length)


def write_table(results: list[Result], folder: Path) -> None:
    """The rows as a file that is read without running anything."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows(results)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (folder / TABLE).write_text(f"{HEAD}\n{body}\n")
