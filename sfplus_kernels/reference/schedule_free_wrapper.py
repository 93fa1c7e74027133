"""Schedule-Free averaging around any optimizer, with x, y and z explicit, for reading and testing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.reference.given_lr import (
    AVERAGING,
    average,
    averaging_weight,
    first_iterates,
)


class ScheduleFreeWrapperReference:
    """The oracle of the tests: simplest code, more memory.

    Arguments as in ``sfplus_kernels.ScheduleFreeWrapper``, without checks. Three buffers per parameter in
    its dtype (x, y, z), kept apart from the base's state.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        weight_decay_at_y: float = 0.0,
        momentum: float = 0.9,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
    ) -> None:
        self.base = base
        self.weight_decay_at_y = weight_decay_at_y
        self.momentum = momentum
        self.powers = {"weight_lr_power": weight_lr_power, "r": r}
        self.iterates: dict[Tensor, dict[str, Tensor]] = {}
        self.averaging: list[dict[str, Any]] = []  # run state of each group
        self.train_mode = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's."""
        return self.base.param_groups

    @torch.no_grad()
    def train(self) -> None:
        """p <- y"""
        self.train_mode = True
        for p, iterates in self.iterates.items():
            p.copy_(iterates["y"])

    @torch.no_grad()
    def eval(self) -> None:
        """p <- x"""
        self.train_mode = False
        for p, iterates in self.iterates.items():
            p.copy_(iterates["x"])

    @torch.no_grad()
    def step(self) -> None:
        """One step of the base on z, then of the averages of those parameters that have a gradient."""
        assert self.train_mode, "call train() first"
        while len(self.averaging) < len(self.param_groups):
            self.averaging.append({**self.powers, **AVERAGING, "lr_max": 0.0})
        for group in self.param_groups:
            for p in with_gradient(group):
                iterates = self.iterates.setdefault(p, first_iterates(p))
                # z <- z - lr weight_decay_at_y y
                iterates["z"].sub_(iterates["y"], alpha=gamma_of(group) * self.weight_decay_at_y)
                p.copy_(iterates["z"])
        self.base.step()
        for group, averaging in zip(self.param_groups, self.averaging, strict=True):
            c = averaging_weight(averaging, gamma_of(group))
            for p in with_gradient(group):
                iterates = self.iterates[p]
                iterates["z"].copy_(p)
                average(iterates, c, self.momentum)
                p.copy_(iterates["y"])
            averaging["k"] += 1


def gamma_of(group: dict[str, Any]) -> float:
    """The base's learning rate, with the factor that Prodigy and D-Adaptation have for it."""
    return float(group["lr"]) * float(group.get("d", 1.0))


def with_gradient(group: dict[str, Any]) -> list[Tensor]:
    """The parameters of ``group`` that take part in this step."""
    return [p for p in group["params"] if p.grad is not None]
