"""How the eager backend keeps state in 16 bits a number (``Format.HALF``): random bits and roundings.

They are those of the kernels, bit for bit; csrc/math/random_rounding.h is the same in C++. What each
rounding means is to be read in reference/state_formats.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.layout import Scalar, Setting

WORD = 0xFFFFFFFF  # int64 arithmetic wraps as uint32 does, in the bits that this leaves


def random_words(entry: Entry, run: RunState) -> Tensor:
    """32 random bits for each element of this step: int64, of the parameter's shape.

    They depend on the seed, the number of the tensor, its count of steps and the element's place in the
    whole tensor, so they are the same however work and tensors are divided.
    """
    seed = run.settings[Setting.ROUNDING_SEED].to(torch.int64)
    step = run.tensors[entry.slot, Scalar.STEP].to(torch.int64)
    of_tensor = _mix(entry.slot) * 0x85EBCA6B & WORD
    a = _mix((_mix(seed ^ 0x9E3779B9) + of_tensor + step) & WORD)
    b = _mix(a ^ 0xA511E9B3)
    h = (_indices(entry) + a) & WORD
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & WORD
    h = ((h ^ (h >> 15)) + b) & WORD
    h = (h * 0x846CA68B) & WORD
    words: Tensor = h ^ (h >> 16)
    return words


def turned(words: Tensor) -> Tensor:
    """For what is rounded once more in the same step, by other bits than the first time."""
    return (words << 16 | words >> 16) & WORD


def stored(new: dict[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """The moments and e, those that there are, as they are stored."""
    result = {}
    if "displacement" in new:
        result["displacement"] = displacement(new["displacement"], words)
    if "exp_avg" in new:
        result["exp_avg"] = new["exp_avg"].to(torch.bfloat16)
    if "exp_avg_sq" in new:
        result["exp_avg_sq"] = exp_avg_sq(new["exp_avg_sq"], words)
    return result


def displacement(e: Tensor, words: Tensor) -> Tensor:
    """float32 -> float16, rounded by chance with 13 of the random bits; never infinite."""
    size, random = e.abs().view(torch.int32), (words & 0x1FFF).to(torch.int32)
    normal = ((size + random - 0x38000000) >> 13).clamp(max=0x7BFF)
    # below 2^-14 a multiple of 2^-24
    small = ((e.abs() + random * 2.0**-37) * 2.0**24).clamp(max=1024).to(torch.int32)
    bits = torch.where(size >= 0x38800000, normal, small)
    bits = torch.where(e.isnan(), 0x7E00, bits) | (e.view(torch.int32) >> 16 & 0x8000)
    return bits.to(torch.int16).view(torch.float16)


def exp_avg_sq(v: Tensor, words: Tensor) -> Tensor:
    """float32 -> bfloat16, rounded by chance with 16 of the random bits."""
    bits = (v.view(torch.int32).to(torch.int64) + (words >> 16)) >> 16
    return torch.where(v.isnan(), 0x7FC0, bits).to(torch.int16).view(torch.bfloat16)


def _mix(x: Any) -> Any:
    """Of an int, or of int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def _indices(entry: Entry) -> Tensor:
    """Of each element in the whole tensor; the order is that of memory."""
    p = entry.param
    j = torch.arange(p.numel(), device=p.device).as_strided(p.shape, entry.strides)
    if entry.part is None:
        return j
    start, run, stride = entry.part
    return start + j // run * stride + j % run
