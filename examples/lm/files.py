"""What a run keeps on disk beside its settings: the metrics, one line per step, and a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"


class MetricsFile:
    """JSON lines that can be cut back to where a checkpoint was taken."""

    def __init__(self, folder: Path, size: int) -> None:
        self.path = folder / METRICS
        self.path.touch()
        # Lines that were written after the checkpoint belong to steps that are taken again.
        os.truncate(self.path, size)

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append; nothing stays in a buffer."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size


def read_metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each optimizer, in the order of the runs."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for text in (folder / METRICS).read_text().splitlines():
        line = json.loads(text)
        runs.setdefault(line["optimizer"], []).append(line)
    return runs


def save_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace the checkpoint in one piece: whenever the machine stops, there is a whole one."""
    temporary = folder / (CHECKPOINT + ".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / CHECKPOINT)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None for a run that was stopped before its first one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint
