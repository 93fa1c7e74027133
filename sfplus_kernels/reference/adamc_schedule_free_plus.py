"""ScheduleFree+ with x, y and z explicit: a transcription of arXiv 2605.19095, for reading and testing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.reference.projection import project_rows


class AdamCScheduleFreePlusReference(torch.optim.Optimizer):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code, more memory.

    Arguments as in ``sfplus_kernels.AdamCScheduleFreePlus``, without checks. Five buffers per parameter in
    its dtype (x, y, z, exp_avg, exp_avg_sq), about 20 operations per tensor, and it reads the sums back
    to the host.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        sf_beta1: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0,
        polyak_beta: float = 0,
        c_warmup: int = 0,
        sf_beta1_anneal_steps: int = 0,
        sf_beta1_max: float = 0.965,
        weight_lr_power: float = 2,
        *,
        warmup_steps: int = 0,
        max_lr: float | None = None,
        f_star: float = 0.0,
        row_norm: float | None = None,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "r": r,
            "c_warmup": c_warmup,
            "weight_lr_power": weight_lr_power,
            "warmup_steps": warmup_steps,
            "max_lr": max_lr,
            "row_norm": row_norm,
        }
        run_state = {"k": 0, "lr_max": None, "weight_sum": 0.0, "ckp1": 0.0, "scheduled_lr": 0.0}
        super().__init__(params, per_group | run_state)
        self.sf_beta1 = sf_beta1
        self.sf_beta1_max = sf_beta1_max
        self.sf_beta1_anneal_steps = sf_beta1_anneal_steps
        self.polyak_beta = polyak_beta
        self.f_star = f_star
        self.sign = -1 if maximize else 1
        self.grad_l1_ema = 0.0
        self.polyak_lr = 0.0
        self.skipped_steps = 0
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
    def step(self, closure: None = None, *, loss: float | Tensor) -> None:  # type: ignore[override]
        """One step, ``loss`` being f(y)."""
        assert self.train_mode, "call train() first"
        with_gradient = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if not with_gradient:
            return
        for p in with_gradient:
            if p not in self.state:
                self.state[p] = {
                    "x": p.clone(),
                    "y": p.clone(),
                    "z": p.clone(),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                    "step": 0,
                }
        f = float(loss)
        k = self.param_groups[0]["k"]
        beta_k = self.momentum(k)

        # The Polyak step: how far the linear model at y, with slopes g, says that the minimum is
        grad_l1 = ip = grad_sq = 0.0
        for p in with_gradient:
            g, state = self.sign * p.grad.to(p.dtype), self.state[p]
            grad_l1 += g.abs().sum().item()
            ip += (g * (state["z"] - state["x"])).sum().item()
            grad_sq += (g * g).sum().item()
        if not all(map(math.isfinite, (f, grad_l1, ip, grad_sq))):
            self.skipped_steps += 1
            return
        beta = self.polyak_beta
        self.grad_l1_ema = beta * self.grad_l1_ema + (1 - beta) * math.sqrt(math.pi / 2) * grad_l1
        corrected = self.grad_l1_ema / (1 - beta ** (k + 1))
        numerator = max(0.0, self.sign * (f - self.f_star) + beta_k * ip)
        self.polyak_lr = numerator / corrected if corrected > 0 else 0.0

        for group in self.param_groups:
            gamma, c = self.group_step_size_and_weight(group)
            for p in group["params"]:
                if p.grad is not None:
                    self.step_one(p, group, gamma, c, beta_k)
                elif p in self.state:
                    self.follow_beta(p, beta_k)
            group["k"] += 1

    def momentum(self, k: int) -> float:
        """beta_k, with ln(1 - beta) going linearly from one end to the other."""
        if self.sf_beta1_anneal_steps == 0:
            return self.sf_beta1
        s = min(k / self.sf_beta1_anneal_steps, 1)
        return 1 - math.exp(
            (1 - s) * math.log(1 - self.sf_beta1) + s * math.log(1 - self.sf_beta1_max)
        )

    def group_step_size_and_weight(self, group: dict[str, Any]) -> tuple[float, float]:
        """gamma and c_k of this step; advances lr_max and weight_sum."""
        k, eps, warmup_steps = group["k"], group["eps"], group["warmup_steps"]
        warmup = min(1, (k + 1) / warmup_steps) if warmup_steps > 0 else 1
        gamma = max(float(group["lr"]), eps) * self.polyak_lr
        if group["max_lr"] is not None:
            gamma = min(gamma, group["max_lr"])
        gamma *= warmup
        previous = eps if group["lr_max"] is None else group["lr_max"]
        lr_max = group["lr_max"] = max(previous, gamma)
        if k < group["c_warmup"]:
            c = 1.0
        else:
            weight = (k + 1) ** group["r"] * lr_max ** group["weight_lr_power"]
            group["weight_sum"] += weight
            c = weight / group["weight_sum"]
        group["scheduled_lr"], group["ckp1"] = gamma, c
        return gamma, c

    def step_one(
        self, p: Tensor, group: dict[str, Any], gamma: float, c: float, beta_k: float
    ) -> None:
        """One tensor: Adam's direction, AdamC's decay at y, then the two averages."""
        state = self.state[p]
        x, y, z, m, v = (state[name] for name in ("x", "y", "z", "exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        assert p.grad is not None
        g = self.sign * p.grad.to(p.dtype)
        state["step"] += 1
        step = state["step"]

        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m_hat = m / (1 - beta1**step)
        v_hat = v / (1 - beta2**step)
        u = m_hat / (v_hat.sqrt() + group["eps"])

        # z <- z - gamma u - gamma^2 weight_decay y
        z.sub_(u, alpha=gamma).sub_(y, alpha=gamma**2 * group["weight_decay"])
        project_rows(z, group["row_norm"])
        # x <- (1 - c) x + c z
        x.mul_(1 - c).add_(z, alpha=c)
        self.follow_beta(p, beta_k)

    def follow_beta(self, p: Tensor, beta_k: float) -> None:
        """y <- beta x + (1 - beta) z, also where there was no gradient: beta is the group's."""
        x, y, z = (self.state[p][name] for name in "xyz")
        y.copy_(x * beta_k + z * (1 - beta_k))
        p.copy_(y)
