"""The optimizers as one would write them down: all is read from the containers at each step.

Slow, float64, and only what the machine of test_machine.py draws: AdamWScheduleFree (with inner momentum)
and ScheduleFree+, in displacement form.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class PlainModel:
    """``param_groups`` and ``state`` as those of the real one; ``polyak`` chooses ScheduleFree+."""

    def __init__(self, groups: list[dict[str, Any]], *, polyak: bool, **defaults: Any) -> None:
        self.polyak = polyak
        self.defaults = {
            "k": 0,
            "lr_max": defaults["eps"] if polyak else -1.0,
            "weight_sum": 0.0,
            "y_beta": 0.0,
            **defaults,
        }
        self.param_groups = [{**self.defaults, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self.train_mode = False

    def train(self) -> None:
        self._set_mode(True)

    def eval(self) -> None:
        self._set_mode(False)

    @torch.no_grad()
    def _set_mode(self, train: bool) -> None:
        self._complete_groups()
        if train == self.train_mode:
            return
        self.train_mode = train
        self._separate()
        for group in self.param_groups:
            for p in group["params"]:
                if self._begun(p):
                    share = (1 - group["y_beta"]) * self.state[p]["displacement"]
                    p.copy_(p + share if train else p - share)

    @torch.no_grad()
    def step(self, loss: float) -> None:
        self._complete_groups()
        active = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if self.polyak and not active:
            return
        for _, p in active:
            if not self._begun(p):
                zeros = {n: torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq", "displacement")}
                self.state[p].update(zeros, step=torch.zeros((), dtype=torch.float64))
        self._separate()
        k = self.param_groups[0]["k"]
        factor = (
            self._polyak(active, loss, self._beta(self.param_groups[0], k)) if self.polyak else 1.0
        )
        for group in self.param_groups:
            beta, b = self._beta(group, k), group["y_beta"]
            gamma = group["lr"] * factor
            group["lr_max"] = max(group["lr_max"], gamma)
            weight = group["lr_max"] ** 2
            group["weight_sum"] += weight
            c = weight / group["weight_sum"] if group["weight_sum"] > 0 else 0.0
            omega = group["weight_decay"] * (gamma**2 if self.polyak else gamma)
            for p in group["params"]:
                if p.grad is not None:
                    self._one(p, group, gamma, omega, c, b, beta)
                elif self._begun(p):
                    p.add_((b - beta) * self.state[p]["displacement"])
            group["k"] += 1
            group["y_beta"] = beta

    def _beta(self, group: dict[str, Any], k: int) -> float:
        if not self.polyak:
            return float(group["betas"][0])
        s = min(k / group["sf_beta1_anneal_steps"], 1)
        ends = math.log(1 - group["sf_beta1"]), math.log(1 - group["sf_beta1_max"])
        return 1 - math.exp((1 - s) * ends[0] + s * ends[1])

    def _polyak(self, active: list, loss: float, beta: float) -> float:
        l1 = sum(float(p.grad.abs().sum()) for _, p in active)
        dot = sum(float((p.grad * self.state[p]["displacement"]).sum()) for _, p in active)
        return max(0.0, loss + beta * dot) / (math.sqrt(math.pi / 2) * l1) if l1 > 0 else 0.0

    def _one(
        self, p: Tensor, group: dict, gamma: float, omega: float, c: float, b: float, beta: float
    ) -> None:
        state = self.state[p]
        beta1, beta2 = group["betas"]
        beta1 = beta1 if self.polyak else group["inner_momentum"]
        assert p.grad is not None
        step = state["step"].add_(1)
        m = state["exp_avg"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        e = state["displacement"]
        u = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + group["eps"])
        delta = gamma * u + omega * p
        p.add_((b - beta * (1 - c)) * e - (1 - beta * (1 - c)) * delta)
        e.copy_((1 - c) * (e - delta))

    def saved(self) -> Any:
        """What a checkpoint keeps."""
        self._complete_groups()
        return copy.deepcopy(
            (self.param_groups, [dict(self.state.get(p, {})) for p in self._params()])
        )

    def load(self, saved: Any) -> None:
        groups, states = copy.deepcopy(saved)
        params = self._params()
        for own, group in zip(self.param_groups, groups, strict=True):
            own.update({key: value for key, value in group.items() if key != "params"})
        self.state = defaultdict(dict, {p: s for p, s in zip(params, states, strict=True) if s})
        self._separate()

    def _separate(self) -> None:
        """What is one tensor under two keys: both are what it was, and then go their own ways."""
        for p in self._params():
            if self._begun(p) and self.state[p]["exp_avg"] is self.state[p]["exp_avg_sq"]:
                self.state[p]["exp_avg"] = self.state[p]["exp_avg"].clone()

    def _begun(self, p: Tensor) -> bool:
        """Others may keep something of theirs there before the first step."""
        return "displacement" in self.state.get(p, {})

    def _complete_groups(self) -> None:
        """Groups that were put there by hand have what they do not name from the defaults."""
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
