"""Contestants whose gradients are elsewhere at each step, as zero_grad() leaves them in most training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from bench.contestants.contestant import Contestant, Step

NAME = "{name}, gradients move"


class MovedStep:
    """A step in front of which gradients change places with others of the same values.

    Args:
        step: the step.
        params: with gradients.
    """

    def __init__(self, step: Step, params: list[nn.Parameter]) -> None:
        self._step, self._params = step, params
        self._others = [None if p.grad is None else p.grad.clone() for p in params]

    def prepare(self) -> None:
        """Exchange them; not timed (see ``timing.Timer``)."""
        for index, param in enumerate(self._params):
            self._others[index], param.grad = param.grad, self._others[index]

    def __call__(self) -> None:
        self._step()


def with_moving_gradients(contestant: Contestant) -> Contestant:
    """The same steps with other gradients each time."""

    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer, step = contestant.make(params)
        return optimizer, MovedStep(step, params)

    # what the steps leave is checked without the exchange, which would bring back gradients of before
    name = NAME.format(name=contestant.name)
    return replace(contestant, name=name, make=make, oracle=None)
