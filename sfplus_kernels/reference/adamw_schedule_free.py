"""Schedule-Free AdamW (arXiv 2405.15682) with x, y and z explicit, for reading and testing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AdamWScheduleFreeReference(torch.optim.Optimizer):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code, more memory.

    Arguments as in ``sfplus_kernels.AdamWScheduleFree``, without checks. Four buffers per parameter in its
    dtype (x, y, z, exp_avg_sq), and exp_avg where ``inner_momentum`` is above 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        inner_momentum: float = 0.0,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "inner_momentum": inner_momentum,
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
        """One tensor: Adam's direction, decay at y, then the two averages."""
        state, inner_momentum = self.state[p], group["inner_momentum"]
        if not state:
            for name in "xyz":
                state[name] = p.clone()
            if inner_momentum > 0:
                state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            state["step"] = 0
        x, y, z, v = (state[name] for name in ("x", "y", "z", "exp_avg_sq"))
        beta, beta2 = group["betas"]
        assert p.grad is not None
        g = self.sign * p.grad.to(p.dtype)
        state["step"] += 1
        step = state["step"]

        m_hat = g
        if inner_momentum > 0:
            m = state["exp_avg"]
            m.mul_(inner_momentum).add_(g, alpha=1 - inner_momentum)
            m_hat = m / (1 - inner_momentum**step)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        v_hat = v / (1 - beta2**step)
        u = m_hat / (v_hat.sqrt() + group["eps"])

        # z <- z - gamma u - gamma weight_decay y
        z.sub_(u, alpha=gamma).sub_(y, alpha=gamma * group["weight_decay"])
        # x <- (1 - c) x + c z
        x.mul_(1 - c).add_(z, alpha=c)
        # y <- beta x + (1 - beta) z
        y.copy_(x * beta + z * (1 - beta))
        p.copy_(y)
