"""The settings of a run, as they stand in its config.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

CONFIG = "config.json"


class OptimizerName(StrEnum):
    """The optimizers that can be compared; the values name them on screen and in every file."""

    SCHEDULE_FREE_PLUS = "schedule-free-plus"
    ADAMW = "adamw"
    ADAMW_SCHEDULE_FREE = "adamw-schedulefree"


class Parallel(StrEnum):
    """How several processes train one model: what each of them holds of it."""

    DDP = "ddp"  # all of it
    FSDP = "fsdp"  # a share of it
    HSDP = "hsdp"  # a share of one of two copies


COMPARED = (OptimizerName.SCHEDULE_FREE_PLUS, OptimizerName.ADAMW)
"""What a run without ``--optimizer`` trains."""


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers of a run, so that ``--resume`` needs nothing else."""

    optimizers: tuple[OptimizerName, ...]
    backend: str | None
    device: str
    steps: int
    batch: int
    seed: int
    lr_factor: float
    dim: int
    layers: int
    context: int
    eval_every: int
    log_every: int
    eval_batches: int
    threads: int  # sums on the CPU are split by threads, so their bits depend on it
    corpus: str  # fingerprint of the text; another Python version has another one
    parallel: Parallel | None = None  # among how many processes, may change

    def save(self, folder: Path) -> None:
        """Write config.json."""
        (folder / CONFIG).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Settings:
        """Read config.json.

        Raises:
            ValueError: the file is not one that ``save`` wrote.
        """
        path = folder / CONFIG
        try:
            values = json.loads(path.read_text())
            values["optimizers"] = tuple(OptimizerName(name) for name in values["optimizers"])
            if values.get("parallel") is not None:
                values["parallel"] = Parallel(values["parallel"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not the settings of a run: {error}") from error
