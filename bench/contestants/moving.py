"""Contestants whose gradients are elsewhere at each step, as zero_grad() leaves them in most training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from bench.contestants.contestant import Contestant, Step

NAME = "{name}, gradients move"


def with_moving_gradients(contestant: Contestant) -> Contestant:
    """Gradients change places with others of the same values in front of each step.

    The exchange is timed too: it is the same for every contestant.
    """

    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer, step = contestant.make(params)
        others = [None if p.grad is None else p.grad.clone() for p in params]

        def moved_step() -> None:
            for index, param in enumerate(params):
                others[index], param.grad = param.grad, others[index]
            step()

        return optimizer, moved_step

    # what the steps leave is checked without the exchange, which would bring back gradients of before
    name = NAME.format(name=contestant.name)
    return replace(contestant, name=name, make=make, oracle=None)
