"""What the references with a given learning rate share: the averages, with x, y and z explicit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.reference.projection import project_rows

AVERAGING = {"k": 0, "lr_max": -1.0, "weight_sum": 0.0, "ckp1": 0.0, "scheduled_lr": 0.0}
"""Run state of a group before its first step."""


class GivenLrReference(torch.optim.Optimizer):
    """An algorithm says what its gamma, its beta and its direction u are; the rest is here.

    Three buffers per parameter in its dtype (x, y, z) beside those of the direction.
    """

    def __init__(self, params: Any, per_group: dict[str, Any], *, maximize: bool) -> None:
        super().__init__(params, per_group | AVERAGING)
        self.sign = -1 if maximize else 1
        self.train_mode = False

    def lr_factor(self, group: dict[str, Any]) -> float:
        """gamma / lr at the group's step k."""
        return warmup(group)

    def momentum(self, group: dict[str, Any]) -> float:
        """beta"""
        return float(group["betas"][0])

    def averaging_weight(self, group: dict[str, Any], gamma: float) -> float:
        """c_k"""
        return averaging_weight(group, gamma)

    def direction(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """u of one tensor; ``state["step"]`` counts its own steps from 1."""
        raise NotImplementedError

    @torch.no_grad()
    def train(self) -> None:
        """p <- y"""
        self.train_mode = True
        for p, state in self.state.items():
            p.copy_(state["y"])

    @torch.no_grad()
    def eval(self) -> None:
        """p <- x"""
        self.train_mode = False
        for p, state in self.state.items():
            p.copy_(state["x"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; every group counts it, those without gradients too."""
        assert self.train_mode, "call train() first"
        for group in self.param_groups:
            gamma = float(group["lr"]) * self.lr_factor(group)
            c = self.averaging_weight(group, gamma)
            for p in group["params"]:
                if p.grad is not None:
                    self.step_one(p, group, gamma, c)
                elif self.state[p]:  # beta is the group's, and may have been changed
                    average(self.state[p], 0.0, self.momentum(group))
                    p.copy_(self.state[p]["y"])
            group["k"] += 1

    def step_one(self, p: Tensor, group: dict[str, Any], gamma: float, c: float) -> None:
        """One tensor: its direction, decay at y, then the two averages."""
        state = self.state[p]
        if not state:
            state.update(first_iterates(p), step=0)
        state["step"] += 1
        assert p.grad is not None
        u = self.direction(self.sign * p.grad.to(p.dtype), state, group)

        # z <- z - gamma u - gamma weight_decay y
        state["z"].sub_(u, alpha=gamma).sub_(state["y"], alpha=gamma * group["weight_decay"])
        project_rows(state["z"], group["row_norm"])
        average(state, c, self.momentum(group))
        p.copy_(state["y"])


def first_iterates(p: Tensor) -> dict[str, Tensor]:
    """x = y = z = p"""
    return {name: p.detach().clone() for name in "xyz"}


def average(iterates: dict[str, Tensor], c: float, beta: float) -> None:
    """x and y after a step of z."""
    x, y, z = (iterates[name] for name in "xyz")
    # x <- (1 - c) x + c z
    x.mul_(1 - c).add_(z, alpha=c)
    # y <- beta x + (1 - beta) z
    y.copy_(x * beta + z * (1 - beta))


def averaging_weight(group: dict[str, Any], gamma: float) -> float:
    """c_k of this step; advances lr_max and weight_sum."""
    lr_max = group["lr_max"] = max(group["lr_max"], gamma)
    weight = (group["k"] + 1) ** group["r"] * lr_max ** group["weight_lr_power"]
    group["weight_sum"] += weight
    c = weight / group["weight_sum"] if group["weight_sum"] > 0 else 0.0
    group["scheduled_lr"], group["ckp1"] = gamma, c
    return float(c)


def warmup(group: dict[str, Any]) -> float:
    """min(1, (k + 1) / warmup_steps)"""
    warmup_steps = group["warmup_steps"]
    return float(min(1, (group["k"] + 1) / warmup_steps)) if warmup_steps > 0 else 1.0


def moving_average(
    state: dict[str, Any], name: str, value: Tensor, decay: float, *, corrected: bool = True
) -> Tensor:
    """Exponential moving average of ``value``, its bias corrected with the tensor's own step count."""
    if name not in state:
        state[name] = torch.zeros_like(value)
    mean: Tensor = state[name].mul_(decay).add_(value, alpha=1 - decay)
    return mean / (1 - decay ** state["step"]) if corrected else mean.clone()
