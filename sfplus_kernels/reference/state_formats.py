"""State in 16 bits a number, in plain arithmetic: what each buffer makes of a float32 value, and back.

One function for each buffer. The kernels do the same on the bits, and must find the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def mix(x: int) -> int:
    """32 bits in, 32 bits out, each depending on all."""
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ (x >> 16)


def random_word(seed: int, tensor: int, step: int, index: int) -> int:
    """32 random bits of one element in one step; nothing is remembered from one to the next.

    Args:
        seed: the optimizer's ``rounding_seed``.
        tensor: the number of the parameter among all of them.
        step: its own count of steps, this one included.
        index: of the element in the whole tensor, in the order of memory.
    """
    a = mix((mix(seed ^ 0x9E3779B9) + mix(tensor) * 0x85EBCA6B + step) & WORD)
    b = mix(a ^ 0xA511E9B3)
    h = (index + a) & WORD
    h ^= h >> 16
    h = h * 0x7FEB352D & WORD
    h ^= h >> 15
    h = (h + b) & WORD
    h = h * 0x846CA68B & WORD
    return h ^ (h >> 16)


def random_words(seed: int, tensor: int, step: int, numel: int) -> Tensor:
    """Those of the elements 0 to ``numel`` of a tensor: int64."""
    words = [random_word(seed, tensor, step, index) for index in range(numel)]
    return torch.tensor(words, dtype=torch.int64)


def stored_displacement(e: Tensor, words: Tensor) -> Tensor:
    """float16, rounded up or down by chance, so that the mean is e; the largest is 65,504.

    The last place of float16 is 2^-10 of the power of two below |e|, or that of 2^-14: to |e| a random
    number is added that is evenly spread over one such place, and what is then below the last place is cut
    off. The random number has 13 bits, as many as float32 has more than float16.
    """
    size, random = e.abs(), (words & 0x1FFF).float()
    raised = size + torch.ldexp(random, _power_below(size) - 23)
    last_place = torch.ldexp(torch.ones_like(raised), _power_below(raised) - 10)
    cut = (raised / last_place).floor() * last_place
    cut = torch.where(size.isfinite(), cut, size).clamp(max=65504)
    return torch.copysign(cut, e).to(torch.float16)


def _power_below(size: Tensor) -> Tensor:
    """The exponent of the power of two below, or -14, which float16 has no smaller of."""
    fraction, exponent = torch.frexp(size)  # fraction 2^exponent; the fraction from 1/2 to 1, or 0
    return torch.where(fraction > 0, exponent - 1, -14).clamp(min=-14)


def stored_exp_avg(m: Tensor) -> Tensor:
    """bfloat16, to the nearest: the rounding is forgotten within 1 / (1 - beta1) steps."""
    return m.to(torch.bfloat16)


def stored_exp_avg_sq(v: Tensor, words: Tensor) -> Tensor:
    """bfloat16, rounded up or down by chance: to the nearest, v would stand still where beta2 is near 1.

    The 16 bits that bfloat16 does not have are, as a share of the last place, the chance to round up.
    """
    bits = v.contiguous().view(torch.int32).long()
    upper, lower = bits >> 16, bits & 0xFFFF
    up = (words >> 16) >= 0x10000 - lower
    rounded = ((upper + up) << 16).to(torch.int32).view(torch.float32)
    return torch.where(v.isnan(), v, rounded).to(torch.bfloat16)


def halves_of_y(y: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 parameter, and an int16 remainder that makes it y again, exactly.

    The parameter is y rounded to the nearest, and where two are equally near the one further from zero: the
    remainder is how many last places of float32 that is from y, -32,768 to 32,767.
    """
    bits = torch.where(y.isnan(), torch.nan, y).contiguous().view(torch.int32).long()
    sign, size = bits & -0x80000000, bits & 0x7FFFFFFF
    upper = (size + 0x8000) >> 16
    param = ((upper << 16) + sign).to(torch.int32).view(torch.float32).to(torch.bfloat16)
    return param, (size - (upper << 16)).to(torch.int16)


def y_of_halves(param: Tensor, low: Tensor) -> Tensor:
    """And back. A zero that somebody wrote stays one: no y has it with a negative remainder."""
    bits = param.float().contiguous().view(torch.int32).long()
    remainder = torch.where((param == 0) & (low < 0), 0, low.long())
    return (bits + remainder).to(torch.int32).view(torch.float32)
