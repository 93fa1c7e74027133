"""The plan: which points there are, in the order in which they are worth their time."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PLAN = Path(__file__).with_name("plan.toml")
OPTIMIZERS = ("adamw", "adamw-schedulefree", "schedule-free-plus")
CAPPED = "schedule-free-plus, capped"  # with a cap on gamma it is told apart
SCHEDULES = ("linear", "wsd", "cosine")
MODELS = {"31k": (32, 1), "135k": (64, 2), "467k": (128, 2), "1.0m": (160, 3)}  # width, layers
PLAIN_BATCH = 32  # sequences: 2,048 bytes
READ_OFF = (20, 50, 100, 200, 300, 600, 1000)  # tokens per parameter


@dataclass(frozen=True)
class Point:
    """One run: all that decides its numbers."""

    stage: str  # "scan": settings are searched; "seeds": the best again; "transfer": carried over
    model: str
    batch: int  # times PLAIN_BATCH sequences
    optimizer: str
    schedule: str | None
    length: int  # tokens per parameter
    seed: int
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if self.model not in MODELS or self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown model or optimizer: {self.model}, {self.optimizer}")
        if (self.schedule in SCHEDULES) != (self.optimizer == "adamw"):
            raise ValueError(f"{self.optimizer} with the schedule {self.schedule}")

    @property
    def name(self) -> str:
        """Names the result file. The stage is no part of it: a setting that was searched is not run again."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        kind = "-".join(filter(None, (self.optimizer, self.schedule)))
        return f"{self.model}-b{self.batch}-{kind}-t{self.length}-{digest[:6]}-s{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a result file."""
        return asdict(self)

    def described(self) -> str:
        """For a line on the screen."""
        return f"{self.name}: {', '.join(f'{k}={v}' for k, v in self.settings.items())}"


def read_plan(path: Path = PLAN) -> list[Point]:
    """The points in order.

    In a block, each of ``model``, ``batch``, ``schedule``, ``length``, ``seed`` and every key of
    ``settings`` may be a list: the points are all combinations. A ``base`` names settings in ``[bases]``
    that the block's own replace. ``each`` is a list of further settings, one point for each of them.
    """
    plan = tomllib.loads(path.read_text())
    points: dict[str, Point] = {}
    for block in plan["points"]:
        base = plan.get("bases", {}).get(block.get("base"), {})
        for change in block.get("each", [{}]):
            for point in expanded(block, {**base, **block.get("settings", {}), **change}):
                points.setdefault(point.name, point)
    return list(points.values())


def expanded(block: dict[str, Any], settings: dict[str, Any]) -> list[Point]:
    """All combinations of what is given as a list."""
    keys = ("model", "batch", "schedule", "length", "seed")
    axes = [as_list(block.get(key)) for key in keys]
    values = [as_list(value) for value in settings.values()]
    return [
        Point(
            stage=block["stage"],
            optimizer=block["optimizer"],
            settings=dict(zip(settings, chosen[len(keys) :], strict=True)),
            **dict(zip(keys, chosen[: len(keys)], strict=True)),
        )
        for chosen in itertools.product(*axes, *values)
    ]


def as_list(value: Any) -> list[Any]:
    """Alternatives; a single value is the only one."""
    return value if isinstance(value, list) else [value]
