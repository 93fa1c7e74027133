"""What an optimizer says of itself: ``repr``, and the names that tab completion offers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

FOR_USERS = {
    *(name for name in dir(torch.optim.Optimizer) if name.islower()),
    *("defaults", "param_groups", "state"),
    *(
        "averaged",
        "averaged_state_dict",
        "backend",
        "eval",
        "iterates",
        "metrics",
        "monitor_drift",
        "state_dict_in",
        "state_formats",
        "step_func",
        "train",
    ),
    "to_upstream_state_dict",
}
"""Public names beside these are what the rooms of the package ask of an optimizer, or of its algorithm."""


def offered(names: Iterable[str]) -> list[str]:
    """Those of an optimizer's names that are for users, and those that begin with an underscore."""
    return [name for name in names if name in FOR_USERS or name.startswith("_")]


def described(
    optimizer: torch.optim.Optimizer, backend: str | None, *, has_modes: bool = True
) -> str:
    """One line, and one for each group with its ``lr`` and what else is not the class's default.

    Args:
        backend: None if it is not chosen yet.
        has_modes: whether it is one thing in train mode and another in eval mode.
    """
    groups, parameters = optimizer.param_groups, inspect.signature(type(optimizer)).parameters
    mode = f", {'train' if groups[0]['train_mode'] else 'eval'} mode" if has_modes else ""
    lines = [f"{type(optimizer).__name__} (backend {backend or 'not chosen yet'}{mode})"]
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
