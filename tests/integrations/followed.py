"""What the tests of follow() share: a trainer that knows nothing of modes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from libraries import N_CLASSES, net
from torch import Tensor, nn

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, ScheduleFreeWrapper, follow


def batch(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + k)
    return torch.randn(6, 6, generator=generator), torch.randn(6, N_CLASSES, generator=generator)


def loss_of(model: nn.Module, k: int) -> Tensor:
    inputs, target = batch(k)
    return (model(inputs) - target).square().mean()


def train(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    """As a trainer that knows nothing of modes."""
    model.train()
    for k in range(first, last):
        loss = loss_of(model, k)
        loss.backward()
        if isinstance(optimizer, AdamCScheduleFreePlus):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        optimizer.zero_grad()


MAKERS: dict[str, Callable[[nn.Module], Any]] = {
    "plus": lambda m: AdamCScheduleFreePlus(m.parameters(), lr=0.1, weight_decay=5.0),
    "adamw": lambda m: AdamWScheduleFree(m.parameters(), lr=0.02, weight_decay=0.1),
    "wrapper": lambda m: ScheduleFreeWrapper(torch.optim.RMSprop(m.parameters(), lr=0.01)),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)


def pair(kind: str) -> tuple[nn.Module, Any]:
    """A model, and its optimizer, which it follows."""
    model = net()
    optimizer = MAKERS[kind](model)
    follow(model, optimizer)
    return model, optimizer
