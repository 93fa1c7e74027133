"""The settings of a run, as they stand in its results.json."""

from __future__ import annotations

from dataclasses import dataclass

from digits_parts.data import HeldOut
from digits_parts.optimizers import OptimizerName


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers of a run."""

    optimizers: tuple[OptimizerName, ...]
    epochs: int
    batch: int
    seeds: tuple[int, ...]
    lr_factor: float
    backend: str | None
    held_out: HeldOut
