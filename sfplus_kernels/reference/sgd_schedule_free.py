"""Schedule-Free SGD (arXiv 2405.15682) with x, y and z explicit, for reading and testing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SGDScheduleFreeReference(torch.optim.Optimizer):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code, more memory.

    Arguments as in ``sfplus_kernels.SGDScheduleFree``, without checks. Three buffers per parameter in its
    dtype (x, y, z).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
        }
        run_state = {"k": 0, "lr_max": -1.0, "weight_sum": 0.0, "ckp1": 0.0, "scheduled_lr": 0.0}
        super().__init__(params, per_group | run_state)
        self.sign = -1 if maximize else 1
        self.train_mode = False

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
            gamma, c = self.group_step_size_and_weight(group)
            for p in group["params"]:
                if p.grad is not None:
                    self.step_one(p, group, gamma, c)
            group["k"] += 1

    def group_step_size_and_weight(self, group: dict[str, Any]) -> tuple[float, float]:
        """gamma and c_k of this step; advances lr_max and weight_sum."""
        k, warmup_steps = group["k"], group["warmup_steps"]
        warmup = min(1, (k + 1) / warmup_steps) if warmup_steps > 0 else 1
        gamma = float(group["lr"]) * warmup
        lr_max = group["lr_max"] = max(group["lr_max"], gamma)
        weight = (k + 1) ** group["r"] * lr_max ** group["weight_lr_power"]
        group["weight_sum"] += weight
        c = weight / group["weight_sum"] if group["weight_sum"] > 0 else 0.0
        group["scheduled_lr"], group["ckp1"] = gamma, c
        return gamma, c

    def step_one(self, p: Tensor, group: dict[str, Any], gamma: float, c: float) -> None:
        """One tensor: the gradient, decay at y, then the two averages."""
        state, beta = self.state[p], group["momentum"]
        if not state:
            for name in "xyz":
                state[name] = p.clone()
            state["step"] = 0
        x, y, z = (state[name] for name in "xyz")
        assert p.grad is not None
        g = self.sign * p.grad.to(p.dtype)
        state["step"] += 1

        # z <- z - gamma g - gamma weight_decay y
        z.sub_(g, alpha=gamma).sub_(y, alpha=gamma * group["weight_decay"])
        # x <- (1 - c) x + c z
        x.mul_(1 - c).add_(z, alpha=c)
        # y <- beta x + (1 - beta) z
        y.copy_(x * beta + z * (1 - beta))
        p.copy_(y)
