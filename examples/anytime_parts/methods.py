"""The optimizers of the comparison, from the settings of a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from anytime_parts.plan import Point
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

WSD_DECAY = 0.2  # the share of a run in which warmup-stable-decay goes down to 0


class Method:
    """An optimizer, how it steps, and where its result is."""

    def __init__(self, parameters: Iterable[nn.Parameter], point: Point, steps: int) -> None:
        settings = dict(point.settings)
        betas = (settings.pop("beta1"), settings.pop("beta2"))
        self.schedule: Callable[[int], float] | None = None
        self.optimizer: torch.optim.Optimizer
        if point.optimizer == "adamw":
            warmup = max(1, round(settings.pop("warmup_share") * steps))
            self.schedule = schedule(str(point.schedule), warmup, steps)
            self.peak = settings["lr"]
            self.optimizer = torch.optim.AdamW(parameters, betas=betas, fused=True, **settings)
            return
        if point.optimizer == "adamw-schedulefree":
            kind: type = AdamWScheduleFree
        else:
            kind = AdamCScheduleFreePlus
        self.optimizer = kind(parameters, betas=betas, **settings)
        self.optimizer.train()

    def step(self, number: int, loss: Tensor) -> None:
        """Step ``number``, from 0."""
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * self.schedule(number)
        if isinstance(self.optimizer, AdamCScheduleFreePlus):
            self.optimizer.step(loss=loss)
        else:
            self.optimizer.step()

    def rate(self) -> float:
        """The last step's size, after all factors: gamma, or the learning rate of the schedule."""
        if self.schedule is not None:
            return float(self.optimizer.param_groups[0]["lr"])
        return float(self.optimizer.metrics()["scheduled_lr"][0])

    def result(self) -> AbstractContextManager[object]:
        """Within it the parameters are what one would keep: x, if the optimizer averages."""
        return self.optimizer.averaged() if self.schedule is None else nullcontext()


def schedule(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    """The factor of the peak learning rate at step k, counted from 0; it ends near 0 at ``steps``."""
    decay = {
        "linear": lambda left, share: left,
        "wsd": lambda left, share: min(1.0, left * share / WSD_DECAY),
        "cosine": lambda left, share: 0.5 - 0.5 * math.cos(math.pi * left),
    }[name]
    share = (steps - warmup) / steps

    def factor(k: int) -> float:
        if k < warmup:
            return (k + 1) / warmup
        return float(decay((steps - k) / (steps - warmup), share))

    return factor
