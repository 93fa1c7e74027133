"""The codes of ``Format.QUARTER``, in torch: how much is added to a float32 number before its end is cut off.

What is added makes the rounding: a random number below one last place, or half a place for the nearest.
reference/state_in_8_bits.py says what the codes mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import halves

BLOCK = 32
"""Neighbours in a row, whose codes of v have one exponent."""

SMALLEST = 4096
"""Elements of a tensor that is kept so: what is smaller takes no memory to speak of."""

HALF_OF_MOMENT = 1 << 19
"""Of the last place of m and v, whose codes have 20 bits less than float32."""

HALF_OF_Y = 1 << 7

LARGEST = 0x7F7  # the first 11 bits of a finite float32 number are not above it


def exp_avg_sq_codes(v: Tensor, added: Tensor | int) -> tuple[Tensor, Tensor]:
    """float32 -> codes, row by row, and the exponent of each 32 of them.

    Args:
        added: below 2^20.
    """
    size = _bits(v) & 0x7FFFFFFF
    number = ((size + added) >> 20).clamp(max=LARGEST)
    highest = (number >> 3).reshape(-1, BLOCK).amax(1, keepdim=True)
    exponents = (highest - 31).clamp(min=1)
    codes = (number.reshape(-1, BLOCK) - 8 * exponents).clamp(min=1).view(v.shape)
    codes = torch.where(size == 0, 0, codes).to(torch.uint8)
    return codes, exponents.to(torch.uint8).view(*_blocks(v))


def exp_avg_sq_of(codes: Tensor, exponents: Tensor) -> Tensor:
    """And back, exactly."""
    number = codes.to(torch.int32).reshape(-1, BLOCK)
    number = (number + 8 * exponents.to(torch.int32).reshape(-1, 1)).view(codes.shape) << 20
    return torch.where(codes == 0, 0, number).view(torch.float32)


def exp_avg_codes(m: Tensor, v: Tensor, added: Tensor | int) -> Tensor:
    """float32 -> codes of m in units of the root of ``v``, as that is stored."""
    root = _root(v)
    t = m * (1 / root.double()).float()
    # 2^-8 times the code's number, of which a float16 has the same bits and more
    a = (t.abs() * 2.0**-3).nan_to_num(1.75, 1.75).clamp(max=1.75)
    normal = (_bits(a) + added - (112 << 23)) >> 20
    small = (a * 2.0**17 + torch.as_tensor(added * 2.0**-20, dtype=torch.float32)).clamp(max=8)
    number = torch.where(a >= 2.0**-14, normal, small.to(torch.int64))
    return torch.where(v == 0, 0, number | (t.signbit().to(torch.int64) << 7)).to(torch.uint8)


def exp_avg_of(codes: Tensor, v: Tensor) -> Tensor:
    """And back, rounded to float32 once."""
    number = codes.to(torch.int32)
    half = ((number & 0x7F) << 7) | ((number & 0x80) << 8)
    e4m3 = half.to(torch.int16).view(torch.float16).float() * 2.0**8
    return e4m3 * _root(v) * 2.0**-5


def parts(y: Tensor, added: Tensor | int) -> tuple[Tensor, Tensor]:
    """float32 y -> the bfloat16 parameter and an int8: together 24 bits.

    Args:
        added: below 2^8.
    """
    bits = _bits(torch.where(y.isnan(), torch.nan, y))
    cut = ((bits + added) >> 8 << 8).to(torch.int32).view(torch.float32)
    high, low = halves(cut)
    return high, (low.view(torch.int16) >> 8).to(torch.int8)


def exponents_shape(shape: torch.Size) -> tuple[int, int]:
    """Of a parameter of that ``shape``, whose rows are along dimension 0."""
    return shape[0], shape[1:].numel() // BLOCK


def _blocks(tensor: Tensor) -> tuple[int, ...]:
    return exponents_shape(tensor.shape) if tensor.dim() > 1 else (tensor.numel() // BLOCK,)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32).to(torch.int64)


def _root(v: Tensor) -> Tensor:
    """Rounded correctly, as not every square root of float32 numbers is."""
    return v.double().sqrt().float()
