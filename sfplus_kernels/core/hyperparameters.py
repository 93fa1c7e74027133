"""Range checks of hyperparameters. Each raises ValueError (or TypeError) naming what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """``value`` as a finite float between ``low`` and ``high`` (ends included unless ``open_``)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a {type(value).__name__} ({value!r}); expected a number")
    number = float(value)
    inside = low <= number <= high and math.isfinite(number)
    if not inside or (open_low and number == low) or (open_high and number == high):
        left = "(" if open_low or low == -math.inf else "["
        right = ")" if open_high or high == math.inf else "]"
        raise ValueError(
            f"{name} is {value!r}; expected a number in {left}{low:g}, {high:g}{right}"
        )
    return number


def check_lr(lr: object) -> float:
    """A learning rate as a float; a 0-dim tensor on a device is checked for shape only (returns 0)."""
    if isinstance(lr, Tensor):
        if lr.dim() != 0 or not lr.dtype.is_floating_point:
            raise ValueError(
                f"lr is a tensor of shape {tuple(lr.shape)} and dtype {lr.dtype}; "
                "expected a 0-dim floating-point tensor"
            )
        if lr.device.type != "cpu":
            return 0.0  # reading it would wait for the device; the engine copies it there
        lr = lr.item()
    return check_number("lr", lr, 0)


def check_max_grad_norm(value: object) -> float:
    """The largest L2 norm, above 0; 0 stands for None, no clipping."""
    return 0.0 if value is None else check_number("max_grad_norm", value, 0, open_low=True)


def check_betas(betas: object, *, first_may_be_one: bool = False) -> tuple[float, float]:
    """``betas`` as two numbers in [0, 1), or the first in [0, 1]."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas is {betas!r}; expected two numbers, such as (0.9, 0.95)")
    beta1 = check_number("betas[0]", betas[0], 0, 1, open_high=not first_may_be_one)
    return beta1, check_number("betas[1]", betas[1], 0, 1, open_high=True)


def check_shared(groups: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
    """Raise ValueError if a group differs from the first in one of the arguments ``names``."""
    for index, group in enumerate(groups[1:], start=1):
        for name in names:
            if group[name] != groups[0][name]:
                raise ValueError(
                    f"group {index} has {name}={group[name]!r}, group 0 has {groups[0][name]!r}; it is "
                    "one for all groups: set it once, as an argument of the optimizer"
                )
