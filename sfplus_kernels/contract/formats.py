"""Which buffers a parameter may have in its state, their dtypes, and how y lies in two halves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.layout import Format

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Of parameters and gradients."""

STATE_FORMATS = ("float32", "16bit", "8bit")
"""In the type of the arithmetic (float64 for float64 parameters), in 16 bits a number, or in 8."""

DEFAULTS = {"state_format": "float32", "rounding_seed": 0, "row_norm": None}
"""Of groups that say nothing of it, such as those that an older version saved."""

ALGORITHM_BUFFERS = ("exp_avg", "exp_avg_sq", "displacement", "momentum_buffer")
"""Those that an algorithm may ask for. One that averages asks for ``displacement``."""

CODES = {"exp_avg": "exp_avg_codes", "exp_avg_sq": "exp_avg_sq_codes"}
"""What a moment is called in ``Format.QUARTER``. Other names for other meanings: a loader of sharded
checkpoints copies values from name to name, and codes are none."""

EXPONENTS = "exp_avg_sq_exponents"
"""Of v in ``Format.QUARTER``: one for 32 elements of a row, in a shape of its own."""

COMES_AND_GOES = frozenset({"momentum_buffer"})
"""Of ``ALGORITHM_BUFFERS`` what may be asked for at some time and not at another. As in torch, it is made at
the first step that needs it, and stays as it is while none does."""

LOW = ("y_low", "y_low_byte")
"""The lower half of y of a bfloat16 parameter, in ``Format.HALF`` and ``Format.QUARTER``."""

OF_Y = ("master_param", *LOW, "y_high")
"""What may be kept of y beside the parameter."""

BUFFERS = (*ALGORITHM_BUFFERS, *OF_Y, *CODES.values(), EXPONENTS)
"""All that may be kept of a parameter and grows with it, under the names in its state."""

FIELDS = {
    **{name: name for name in (*ALGORITHM_BUFFERS, *OF_Y)},
    **{code: name for name, code in CODES.items()},
    "momentum_buffer": "exp_avg",
    "y_low_byte": "y_low",
    EXPONENTS: "exponents",
}
"""Name in the state -> name in ``contract.backend.Entry``."""

STEP = "step"
"""The count of a parameter's steps."""

HALF_DTYPES = {
    "exp_avg": torch.bfloat16,
    "exp_avg_sq": torch.bfloat16,
    "displacement": torch.float16,  # small, and an integral: it needs the bits more than the range
    "momentum_buffer": torch.bfloat16,
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


QUARTER_DTYPES = {
    "exp_avg": torch.uint8,
    "exp_avg_sq": torch.uint8,
    EXPONENTS: torch.uint8,
    "displacement": torch.float16,  # in 8 bits its error would grow without end
    "y_low_byte": torch.int8,
    "y_high": torch.bfloat16,
}
"""In ``Format.QUARTER``: as in ``HALF_DTYPES``, and the moments are codes (contract/eight_bits.py)."""


def format_of(
    param_dtype: torch.dtype, names: Collection[str], state_format: str, *, in_blocks: bool
) -> Format:
    """How the state of such a parameter is kept.

    Args:
        names: of ``ALGORITHM_BUFFERS`` those that the algorithm asks for.
        in_blocks: whether its rows consist of whole blocks, so that it may be kept in 8 bits.
    """
    if state_format == "float32" or param_dtype not in (torch.float32, torch.bfloat16):
        return Format.FULL
    beside = needs_master(param_dtype)
    if not (names or beside):
        return Format.FULL  # there is nothing to keep
    # than in 16 bits: m has a unit in 8 where there is v. Of SGD that averages nothing all stays in 16
    smaller = "exp_avg_sq" in names or (beside and averages(names))
    return Format.QUARTER if state_format == "8bit" and in_blocks and smaller else Format.HALF


def buffer_dtypes(
    param_dtype: torch.dtype, names: Collection[str], kept: Format
) -> dict[str, torch.dtype]:
    """What a parameter has in its state, in train mode.

    Args:
        names: of ``ALGORITHM_BUFFERS`` those that the algorithm asks for.
        kept: as ``format_of`` says.
    """
    beside = needs_master(param_dtype)
    if kept == Format.QUARTER:
        dtypes = {CODES.get(name, name): QUARTER_DTYPES[name] for name in names}
        more = [EXPONENTS] if "exp_avg_sq" in names else []
        more += ["y_low_byte"] if beside else []
        return dtypes | {name: QUARTER_DTYPES[name] for name in more}
    if kept == Format.HALF:
        return {name: HALF_DTYPES[name] for name in (*names, *(["y_low"] if beside else []))}
    return dict.fromkeys((*names, *(["master_param"] if beside else [])), state_dtype(param_dtype))


def averages(names: Collection[str]) -> bool:
    """Whether an algorithm that asks for these of ``ALGORITHM_BUFFERS`` averages."""
    return "displacement" in names


def asked(state: Mapping[str, Any]) -> list[str]:
    """Those of ``ALGORITHM_BUFFERS`` that were asked for, whatever they are kept as."""
    return [name for name in ALGORITHM_BUFFERS if name in state or CODES.get(name) in state]


def begun_otherwise(names: Collection[str], kept: Collection[str]) -> bool:
    """Whether state with ``kept`` of ``ALGORITHM_BUFFERS`` cannot be of one that asks for ``names`` now."""
    return set(names) != set(kept) and not COMES_AND_GOES.issuperset({*names, *kept})


def is_quarter(state: Mapping[str, Any]) -> bool:
    """Whether there is something in it that is only in ``Format.QUARTER``."""
    return any(name in state for name in (*CODES.values(), EXPONENTS, "y_low_byte"))


def is_half(state: Mapping[str, Any]) -> bool:
    """Whether it is kept in ``Format.HALF``; float32 and float64 are the only dtypes of state in full."""
    kept = [getattr(state.get(name), "dtype", None) for name in (*ALGORITHM_BUFFERS, "y_low")]
    return not is_quarter(state) and any(dtype in HALF_DTYPES.values() for dtype in kept)


def low_of(state: Mapping[str, Any]) -> Any:
    """The lower half of y, or None."""
    return next((state[name] for name in LOW if name in state), None)


def rows_are_runs(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether each row (of dimension 0) of a dense tensor lies in one piece in memory."""
    return 0 in shape or shape[0] == 1 or strides[0] == math.prod(shape[1:])


def strides_row_by_row(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a tensor whose elements lie in memory in their order."""
    return torch.empty(shape, device="meta").stride()


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
    eight = low.dtype == torch.int8  # the upper ones of the 16
    rest = low.to(torch.int32) * 256 if eight else low.view(torch.int16).to(torch.int32)
    rest = torch.where((high == 0) & (rest < 0), 0, rest)
    return ((high.view(torch.int16).to(torch.int32) << 16) + rest).view(torch.float32)


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, to the nearest; in float16 the largest is the largest that is finite."""
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)
