"""What ``repr`` says of an optimizer: its settings, its backend and its mode."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def described(optimizer: torch.optim.Optimizer, backend: str | None) -> str:
    """One line, and one for each group with its ``lr`` and what else is not the class's default.

    Args:
        backend: None if it is not chosen yet.
    """
    groups, parameters = optimizer.param_groups, inspect.signature(type(optimizer)).parameters
    mode = "train" if groups[0]["train_mode"] else "eval"
    lines = [f"{type(optimizer).__name__} (backend {backend or 'not chosen yet'}, {mode} mode)"]
    for number, group in enumerate(groups):
        settings = {
            name: _plain(group[name])
            for name, parameter in parameters.items()
            if name in group and (name == "lr" or _plain(group[name]) != parameter.default)
        }
        said = ", ".join(
            f"{name}={value!r}" for name, value in settings.items() if name != "params"
        )
        lines.append(f"    group {number}, {len(group['params'])} parameters: {said}")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """A tensor on the host as its number; one on a device as where it is, since reading it would wait."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.item() if value.device.type == "cpu" else f"a tensor on {value.device}"
