"""An optimizer after three steps, for tests that then lay hands on it."""

from __future__ import annotations

from typing import Any

import torch
from truth.test_hands import make, steps

FAST = ["eager", "cpu"]
PLAIN = ["adamw", "sgd", "radam", "paper"]


def trained(name: str = "adamw", backend: str = "cpu", dtype: torch.dtype = torch.float64) -> Any:
    optimizer, params = make(name, backend, dtype)
    optimizer.train()
    steps(optimizer, params, 0, 3)
    return optimizer, params
