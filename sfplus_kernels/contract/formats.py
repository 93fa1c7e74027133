"""Which buffers a parameter may have in its state, their dtypes, and how y lies in two halves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Of parameters and gradients."""

STATE_FORMATS = ("float32", "16bit")
"""In the type of the arithmetic (float64 for float64 parameters), or in 16 bits a number."""

DEFAULTS = {"state_format": "float32", "rounding_seed": 0}
"""Of groups that say nothing of it, such as those that an older version saved."""

ALGORITHM_BUFFERS = ("exp_avg", "exp_avg_sq", "displacement")
"""Those that an algorithm may ask for."""

BUFFERS = (*ALGORITHM_BUFFERS, "master_param", "y_low", "y_high")
"""All buffers of a parameter's shape, under their names in its state and in ``contract.backend.Entry``."""

STEP = "step"
"""The count of a parameter's steps: all in its state that has not its shape."""

HALF_DTYPES = {
    "exp_avg": torch.bfloat16,
    "exp_avg_sq": torch.bfloat16,
    "displacement": torch.float16,  # small, and an integral: it needs the bits more than the range
    "y_low": torch.bfloat16,  # bits of an int16, a dtype that gloo does not send
    "y_high": torch.bfloat16,
}
"""In ``Format.HALF``. bfloat16 parameters are the upper half of y, ``y_low`` is the lower one; ``y_high`` has
the upper one while the parameter holds x, and only then."""


def state_dtype(param_dtype: torch.dtype) -> torch.dtype:
    """dtype of the arithmetic on a parameter, and of its state in full: float64 for float64, else float32."""
    return torch.float64 if param_dtype == torch.float64 else torch.float32


def needs_master(param_dtype: torch.dtype) -> bool:
    """Whether y needs more than the parameter itself, which is too coarse."""
    return param_dtype != state_dtype(param_dtype)


def is_half(param_dtype: torch.dtype, state_format: str) -> bool:
    """Whether the state of such a parameter is in 16 bits a number. That of a float16 one never is."""
    return state_format == "16bit" and param_dtype in (torch.float32, torch.bfloat16)


def buffer_dtypes(
    param_dtype: torch.dtype, names: Iterable[str], state_format: str
) -> dict[str, torch.dtype]:
    """What a parameter has in its state, in train mode.

    Args:
        names: of ``ALGORITHM_BUFFERS`` those that the algorithm asks for.
    """
    if is_half(param_dtype, state_format):
        beside = ("y_low",) if needs_master(param_dtype) else ()
        return {name: HALF_DTYPES[name] for name in (*names, *beside)}
    beside = ("master_param",) if needs_master(param_dtype) else ()
    return dict.fromkeys((*names, *beside), state_dtype(param_dtype))


def halves(y: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 and the int16 whose bits make up those of float32 ``y``; the latter as ``y_low`` has it.

    The upper half is rounded, half a place away from zero: to even, it could not be undone.
    """
    bits = torch.where(y.isnan(), torch.nan, y).view(torch.int32)
    low = bits.to(torch.int16)  # the lower half, with the sign that makes the upper one the nearest
    high = (bits - low.to(torch.int32)) >> 16
    return high.to(torch.int16).view(torch.bfloat16), low.view(HALF_DTYPES["y_low"])


def whole(high: Tensor, low: Tensor) -> Tensor:
    """float32 y of its two halves; where somebody wrote a zero into the upper one, no NaN but zero."""
    rest = low.view(torch.int16).to(torch.int32)
    rest = torch.where((high == 0) & (rest < 0), 0, rest)
    return ((high.view(torch.int16).to(torch.int32) << 16) + rest).view(torch.float32)


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, to the nearest; in float16 the largest is the largest that is finite."""
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)
