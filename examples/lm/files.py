"""What a run keeps on disk beside its settings: the metrics, one line per step, and a checkpoint.

A checkpoint is one file; under ``--parallel`` it is a folder, which all processes write together.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
POSITION = "checkpoint.json"  # where the run was, and in which of the folders its checkpoint is
DIVIDED = ("checkpoint-a", "checkpoint-b")  # one is written while the other is valid


class MetricsFile:
    """JSON lines that can be cut back to where a checkpoint was taken.

    Args:
        size: in bytes, of what is kept.
        writes: False in all processes but one.
    """

    def __init__(self, folder: Path, size: int, writes: bool = True) -> None:
        self.path, self.writes = folder / METRICS, writes
        if not writes:
            return
        self.path.touch()
        # Lines that were written after the checkpoint belong to steps that are taken again.
        os.truncate(self.path, size)

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append; nothing stays in a buffer."""
        if not self.writes:
            return
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


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once it is whole and on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace the checkpoint in one piece: whenever the machine stops, there is a whole one."""
    with replacing(folder / CHECKPOINT) as file:
        torch.save(content, file)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None for a run that was stopped before its first one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def save_divided(
    folder: Path, position: Mapping[str, Any], state: dict[str, Any], first: bool
) -> None:
    """Replace the checkpoint that all processes hold together; all of them must call this.

    It goes into a folder of its own, and counts from the moment when POSITION names it: whichever process
    dies, and whenever, one of the two folders is whole and named.

    Args:
        position: small things, the same in all processes, that are wanted before the state is loaded.
        state: as ``torch.distributed.checkpoint`` takes it.
        first: whether this process is the one that has no others before it.
    """
    last = load_position(folder)
    new = DIVIDED[last is not None and last["folder"] == DIVIDED[0]]
    if first and (folder / new).exists():  # left by a process that died
        shutil.rmtree(folder / new)
    dist.barrier()
    dcp.save(state, checkpoint_id=folder / new)  # comes back when all processes have written
    if first:
        with replacing(folder / POSITION) as file:
            file.write(json.dumps({**position, "folder": new}).encode() + b"\n")
        if last is not None:
            shutil.rmtree(folder / last["folder"])


def load_position(folder: Path) -> dict[str, Any] | None:
    """What ``save_divided`` was told at the last checkpoint; None if there is none."""
    path = folder / POSITION
    if not path.exists():
        return None
    position: dict[str, Any] = json.loads(path.read_text())
    return position


def load_divided(folder: Path, position: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Fill ``state``, made as for saving, from the checkpoint; among how many it was divided is no matter."""
    dcp.load(state, checkpoint_id=folder / position["folder"])
