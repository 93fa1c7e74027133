"""A small convolutional network with BatchNorm."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10


def make_model(seed: int) -> nn.Sequential:
    """(n, 1, 8, 8) to (n, 10) of logits; 6,274 parameters that depend on the seed alone."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = nn.Sequential(
        *block(1, 8),
        *block(8, 16),
        nn.MaxPool2d(2),
        *block(16, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )
    torch.random.set_rng_state(state)
    return model


def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A convolution without bias, since BatchNorm has one."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
