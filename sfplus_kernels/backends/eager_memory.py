"""What the tensors of an entry hold, in the type of the arithmetic, and back: load and store of ``eager``."""

from __future__ import annotations

import torch
from torch import Tensor

from sfplus_kernels.backends import eight_bits
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.formats import halves, state_dtype, whole
from sfplus_kernels.contract.layout import Format


def follows(entry: Entry) -> bool:
    """Whether y is more than the parameter: in a ``master_param``, or in two halves."""
    return entry.master_param is not None or entry.y_low is not None


def values(entry: Entry) -> tuple[Tensor, Tensor | None]:
    """y and e, in the type of the arithmetic."""
    param, e = entry.param.detach(), entry.displacement
    if e is not None:
        e = e.to(state_dtype(param.dtype))
    if entry.y_low is not None:
        return whole(param if entry.y_high is None else entry.y_high, entry.y_low), e
    return entry.y.detach(), e


def moments(entry: Entry) -> dict[str, Tensor]:
    """Those that there are, in the type of the arithmetic."""
    if entry.format == Format.QUARTER:
        return eight_bits.moments(entry)
    found = {"exp_avg": entry.exp_avg, "exp_avg_sq": entry.exp_avg_sq}
    dtype = state_dtype(entry.param.dtype)
    return {name: kept.to(dtype) for name, kept in found.items() if kept is not None}


def stored_y(entry: Entry, y: Tensor, words: Tensor | None = None) -> dict[str, Tensor]:
    """Where y goes: the buffers and their new values. In a move there are no random ``words``."""
    if entry.y_low is not None:
        quarter = entry.format == Format.QUARTER
        high, low = eight_bits.parts(y, words) if quarter else halves(y)
        return {"param": high, "y_low": low}
    if entry.master_param is not None:
        return {"master_param": y, "param": y.to(entry.param.dtype)}
    return {"param": y}


def take_what_was_written(entry: Entry, skip: Tensor | None = None) -> None:
    """A parameter that follows y was left as its rounding; where it is not, what was written wins."""
    if entry.master_param is not None:
        y, param = entry.y.detach(), entry.param.detach()
        untouched = y.to(param.dtype) == param
        y.copy_(torch.where(untouched if skip is None else untouched | skip, y, param.to(y.dtype)))


def columns(table: Tensor, columns: type) -> tuple[Tensor, ...]:
    """The columns of a buffer in the order of its enum."""
    return tuple(table[..., column] for column in columns)  # type: ignore[attr-defined]
