"""Range checks of hyperparameters. Each raises ValueError (or TypeError) naming what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor

from sfplus_kernels.contract.layout import Hyper
from sfplus_kernels.state.containers import Containers


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """``value`` as a finite float between ``low`` and ``high`` (ends included unless ``open_``).

    A number of Python or NumPy, or a tensor or an array without dimensions (waited for, if on a device).
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
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
    """A learning rate as a float; a tensor on a device is checked for shape only (returns 0)."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or not lr.dtype.is_floating_point:
            raise ValueError(
                f"lr is a tensor of shape {tuple(lr.shape)} and dtype {lr.dtype}; "
                "expected a floating-point tensor with one element"
            )
        if lr.device.type != "cpu":
            return 0.0  # reading it would wait for the device; the engine copies it there
        lr = lr.item()
    return check_number("lr", lr, 0)


def check_max_grad_norm(value: object) -> float:
    """The largest L2 norm, above 0; 0 stands for None, no clipping."""
    return 0.0 if value is None else check_number("max_grad_norm", value, 0, open_low=True)


def check_max_lr(value: object) -> float:
    """The cap on a Polyak step, above 0; 0 stands for None or infinity, no cap."""
    if value is None or (isinstance(value, float) and value == math.inf):
        return 0.0
    try:
        return check_number("max_lr", value, 0, open_low=True)
    except ValueError as error:
        raise ValueError(f"{error}, or None for no cap") from None


def check_row_norm(value: object) -> float:
    """``layout.Hyper.ROW_NORM``, above 0; 0 stands for None, nothing is projected."""
    return 0.0 if value is None else check_number("row_norm", value, 0, open_low=True)


def check_decoupling_c(value: object, beta: float) -> float:
    """(1 - beta) C, above 0, which the averaging weight is multiplied by; 0 stands for None, it is not."""
    if value is None:
        return 0.0
    try:
        c = check_number("decoupling_c", value, 0, open_low=True)
    except ValueError as error:
        raise ValueError(f"{error}, or None for the averages of Schedule-Free") from None
    if beta == 1:
        raise ValueError(
            f"decoupling_c is {value!r} and beta is 1; expected a beta below 1, for the averaging weight is "
            "multiplied by (1 - beta) decoupling_c: with 0 nothing would be averaged"
        )
    return (1 - beta) * c


def largest_gamma(group: Mapping[str, Any], k: float) -> float:
    """What ``max_lr`` lets through at the step that made a group's count ``k``, as finalize forms it."""
    cap, warmup_steps = check_max_lr(group["max_lr"]), float(group["warmup_steps"])
    if cap == 0:
        return math.inf
    return cap * (k / warmup_steps if k < warmup_steps else 1.0)


def check_betas(betas: object, *, first_may_be_one: bool = False) -> tuple[float, float]:
    """``betas``, any sequence of two numbers, in [0, 1), or the first in [0, 1]."""
    try:
        first, second = betas  # type: ignore[misc]
    except (TypeError, ValueError):
        first = second = None
    if first is None or isinstance(betas, str | bytes | Mapping | Set):
        raise TypeError(f"betas is {betas!r}; expected two numbers, such as (0.9, 0.95)")
    beta1 = check_number("betas[0]", first, 0, 1, open_high=not first_may_be_one)
    return beta1, check_number("betas[1]", second, 0, 1, open_high=True)


def check_shared(groups: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
    """Raise ValueError if a group differs from the first in one of the arguments ``names``."""
    for index, group in enumerate(groups[1:], start=1):
        for name in names:
            if group[name] != groups[0][name]:
                raise ValueError(
                    f"group {index} has {name}={group[name]!r}, group 0 has {groups[0][name]!r}; it is "
                    "one for all groups: set it once, as an argument of the optimizer"
                )


def check_bounds_of_m(hyper: Sequence[Sequence[float]], containers: Containers) -> None:
    """Raise ValueError unless m is bounded by a multiple of sqrt(v) wherever ``"8bit"`` keeps it so.

    Args:
        hyper: of each group its row of ``layout.Hyper``.
    """
    for row, buffers, kept in zip(hyper, containers.buffers, containers.formats, strict=True):
        beta1, beta2 = row[Hyper.BETA1], row[Hyper.BETA2]
        if kept == "8bit" and "exp_avg" in buffers and beta1**2 >= beta2:
            raise ValueError(
                f"state_format is '8bit', and the betas of m and v are ({beta1}, {beta2}); expected that of "
                "m, squared, below that of v, else m has no bound in units of sqrt(v); or '16bit'"
            )


def check_seed(value: object) -> float:
    """The seed of stochastic rounding, an integer of 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise ValueError(
            f"rounding_seed is {value!r}; expected an integer from 0 to 4294967295, the same on all processes"
        )
    return float(value)


def check_closure(closure: object) -> None:
    """Raise TypeError for what cannot be called: mostly the loss, without its name."""
    if closure is not None and not callable(closure):
        raise TypeError(
            f"step() got a {type(closure).__name__} as its closure; expected a function, or nothing: "
            "give a loss by name, step(loss=loss)"
        )


def check_clip_coef(value: object) -> None:
    """Raise for a factor that enlarges gradients; one on a device is not read."""
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            return
        value = value.item()
    # NaN is no fault of the caller: a gradient was not finite, and the step will be skipped
    if value is not None and not (isinstance(value, float) and math.isnan(value)):
        check_number("clip_coef, by which the gradients were multiplied before,", value, 0, 1)


def check_steps(name: str, value: object) -> float:
    """A number of steps, at least 0; a share of the run is refused."""
    steps = check_number(name, value, 0)
    if 0 < steps < 1:
        raise ValueError(
            f"{name} is {value!r}; expected a number of steps, 0 or at least 1. If it is a share of the run, "
            f"multiply it with the number of steps; if it came by position, name the arguments"
        )
    return steps


def check_sf_beta1(value: object, *, open_high: bool) -> float:
    """beta of Schedule-Free where it is an argument of its own: AdamW has ``eps`` in its place."""
    beta = check_number("sf_beta1", value, 0, 1, open_high=open_high)
    if 0 < beta < 1e-3:
        raise ValueError(
            f"sf_beta1 is {value!r}; expected 0 or a number from 0.001 to 1. If this is AdamW's order of "
            "arguments (eps after betas), name them: eps=..., weight_decay=..."
        )
    return beta
