"""One contestant, and how it is made and stepped."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.record.rows import BASELINE
from bench.work.workloads import Workload

LOSS = 2.0
TIERS = ("fused", "core", "all")
"""Who takes part in a workload: each of these includes those before it."""
OTHERS = "others"
"""And a tier apart: the classes that are not main ones, and the baseline."""

Step = Callable[[], Any]
Make = Callable[[list[nn.Parameter]], tuple[torch.optim.Optimizer, Step]]


@dataclass(frozen=True)
class Contestant:
    """One optimizer as it is timed.

    ``state_arrays`` is for an optimizer that is one fused pass: it reads gradient, parameter and so many
    state arrays of ``state_itemsize`` bytes (None: of the parameter) and writes all but the gradient. None
    means that the traffic is counted by watching a step (see ``traffic``).
    """

    name: str
    make: Make
    oracle: Make | None  # in float64, what the result has to be
    tier: str = "all"
    ours: bool = False
    absent: str = ""  # the reason
    state_arrays: int | None = None
    state_itemsize: int | None = None
    tolerance: float = 1.0  # multiplies that of the check
    writes_gradients: bool = False
    same_dtypes: bool = False  # takes only gradients of the parameter's dtype
    slow_to_make: bool = False  # takes part in the first workload only
    capturable: bool = False  # may be captured in a CUDA graph
    for_matrices: bool = False  # keeps only these in 8 bits, and has nothing to show on others

    def suits(self, workload: Workload) -> bool:
        return workload.of_matrices or not self.for_matrices

    def is_in(self, workload: Workload) -> bool:
        if not self.suits(workload):
            return False
        if OTHERS in (self.tier, workload.tier):
            return self.tier == workload.tier or (self.tier != OTHERS and self.name == BASELINE)
        return TIERS.index(self.tier) <= TIERS.index(workload.tier)


def is_compiled(contestant: Contestant) -> bool:
    """Whether it is ours, on a backend whose passes are known."""
    return contestant.ours and not contestant.name.endswith(" eager")


def driver(cls: Callable, arguments: dict[str, Any], step: str = "plain") -> Make:
    """How an optimizer is made and stepped."""

    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer = cls(params, **arguments)
        if hasattr(optimizer, "train"):
            optimizer.train()
        # on a GPU it is there that a training step has it, and only there a CUDA graph can read it again
        device = params[0].device
        loss = LOSS if device.type == "cpu" else torch.tensor(LOSS, device=device)
        steps: dict[str, Step] = {
            "plain": lambda: optimizer.step(),
            "loss": lambda: optimizer.step(loss=loss),
            "closure": lambda: optimizer.step(lambda: loss),  # what the closure costs is not ours
        }
        return optimizer, steps[step]

    return make


def imported(module: str, name: str) -> Callable:
    """A class that is imported when it is made."""
    return lambda *args, **kwargs: getattr(importlib.import_module(module), name)(*args, **kwargs)


def missing(module: str) -> str:
    """ "" if ``module``'s package is installed, else the reason to give."""
    package = module.partition(".")[0]
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"
