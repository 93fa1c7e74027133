"""State in 8 bits a number, in plain arithmetic: what each buffer makes of a float32 value, and back.

One function for each buffer, and e as in ``state_formats``. Of an element's random word each buffer takes
its own bits, and half of the last of them: y 0 to 7 (all that it drops, so no half), e 8 to 17, v 18 to 26,
m 27 to 31. v is stored before m, whose unit is the root of what is stored of v.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfplus_kernels.reference import state_formats

BLOCK = 32
"""Neighbours in memory whose v have one exponent."""

LARGEST_V = 1.875 * 2.0**127


def stored_displacement(e: Tensor, words: Tensor) -> Tensor:
    """float16, as in 16 bits with 10 random bits and a half in place of 13."""
    return state_formats.stored_displacement(e, (words >> 8 & 0x3FF) * 8 + 4)


def stored_exp_avg_sq(v: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and the lowest exponent of each block of 32: 3 bits of mantissa above a zero of its own.

    A code is 8 times the exponent above the lowest, and the mantissa: 32 powers of two down from the largest
    v of the block. What is below has the lowest code but 0: v is never taken for 0, else m would be divided
    by eps. The lowest exponent is that of a normal float32 number, so nothing that is stored is subnormal.
    """
    exact = v.abs().double().nan_to_num(LARGEST_V, LARGEST_V)
    places = _power_below(exact, -126) - 3
    share = ((words >> 18 & 0x1FF) + 0.5) / 512
    number = torch.ldexp((torch.ldexp(exact, -places) + share).floor(), places)
    number = torch.where(v == 0, 0, number.clamp(max=LARGEST_V))
    power = _power_below(number, -126)
    lowest = (power.view(-1, BLOCK).amax(1, keepdim=True) - 31).clamp(min=-126)
    above = power - lowest.expand(-1, BLOCK).reshape(v.shape)
    codes = above * 8 + torch.ldexp(number, 3 - power) - 8
    codes = torch.where(number == 0, 0, codes.clamp(min=1))
    codes = torch.where((v != 0) & (number == 0), 1, codes)  # subnormal, and rounded down
    return codes.to(torch.uint8), (lowest.flatten() + 127).to(torch.uint8)


def exp_avg_sq_of(codes: Tensor, exponents: Tensor) -> Tensor:
    """And back, exactly: float32."""
    each = exponents.to(torch.int32).repeat_interleave(BLOCK).view(codes.shape) - 127
    number = codes.double()
    v = torch.ldexp(1 + number % 8 / 8, each + (number / 8).floor().to(torch.int32))
    return torch.where(codes == 0, 0, v).float()


def stored_exp_avg(m: Tensor, v: Tensor, words: Tensor) -> Tensor:
    """Codes: m in units of the root of v, an 8-bit floating point number with 4 bits of exponent (E4M3).

    In that unit m has a bound whatever the gradients, 1.17 for betas of 0.9 and 0.95 and 7.3 for 0.9 and
    0.999, so it needs no scale and no neighbour can spoil it. The largest is 14.

    Args:
        v: as it is stored.
    """
    root = v.double().sqrt().float()
    rho = m * (1 / root.double()).float()  # in float32, as the kernels have it
    size = (rho.abs() * 32).nan_to_num(448, 448).clamp(max=448)
    places = _power_below(size, -6) - 3
    share = ((words >> 27).float() + 0.5) / 32
    number = torch.ldexp((torch.ldexp(size, -places) + share).floor(), places).clamp(max=448)
    codes = number.to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(v == 0, 0, codes + 128 * rho.signbit()).to(torch.uint8)


def exp_avg_of(codes: Tensor, v: Tensor) -> Tensor:
    """And back: float32, rounded once."""
    return codes.view(torch.float8_e4m3fn).float() * v.double().sqrt().float() / 32


def parts_of_y(y: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 parameter and an int8 remainder: together 24 bits of y, rounded by chance."""
    bits = torch.where(y.isnan(), torch.nan, y).contiguous().view(torch.int32).long()
    cut = ((bits + (words & 0xFF)) >> 8) << 8
    param, low = state_formats.halves_of_y(cut.to(torch.int32).view(torch.float32))
    return param, (low >> 8).to(torch.int8)


def y_of_parts(param: Tensor, low: Tensor) -> Tensor:
    """And back, exactly."""
    return state_formats.y_of_halves(param, low.to(torch.int16) * 256)


def _power_below(size: Tensor, least: int) -> Tensor:
    """The exponent of the power of two below, at least ``least``."""
    fraction, exponent = torch.frexp(size)  # fraction 2^exponent; the fraction from 1/2 to 1, or 0
    return torch.where(fraction > 0, exponent - 1, least).clamp(min=least)
