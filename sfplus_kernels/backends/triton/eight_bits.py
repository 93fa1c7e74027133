"""State in 8 bits (``Format.QUARTER``): moments as codes, and y of a bf16 parameter in 24 bits.

The same bits as csrc/math/eight_bits.h and csrc/math/split_rule.h. Elements come in rows of 32, whose v have
one exponent. A "rank" is what is left of a float's bits above its third bit of mantissa.
"""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton import sixteen_bits
from sfplus_kernels.backends.triton.memory import round_to

# -- v ---------------------------------------------------------------------------------------------------


@triton.jit
def ranks_of(codes, lowest):
    codes = codes.to(tl.uint32)
    return tl.where(codes == 0, 0, codes + lowest)


@triton.jit
def value_of(ranks):
    return (ranks << 20).to(tl.float32, bitcast=True)


@triton.jit
def exp_avg_sq(v, words):
    """The ranks of what is stored, and the lowest of each row: what is positive is above it."""
    bits = v.to(tl.uint32, bitcast=True)
    ranks = (bits + (((words >> 7) & 0xFF800) | 0x400)) >> 20
    ranks = tl.where(ranks > 0x7F7, 0x7F7, ranks)
    exponents = tl.expand_dims(tl.max(ranks.to(tl.int32), axis=1), 1).to(tl.uint32) >> 3
    lowest = tl.where(exponents > 32, exponents - 31, 1) << 3
    ranks = tl.where(ranks > lowest, ranks, lowest + 1)
    return tl.where(bits == 0, 0, ranks), lowest


# -- m ---------------------------------------------------------------------------------------------------


@triton.jit
def _root(ranks):
    """Of v as it is stored; of 0 anything that can be divided by."""
    return tl.sqrt_rn(tl.where(ranks == 0, 1.0, value_of(ranks)))


@triton.jit
def exp_avg_of(codes, ranks):
    """m of its code, which is 32 m / sqrt(v) as a float of 4 bits of exponent and 3 of mantissa."""
    codes = codes.to(tl.uint32)
    size = codes & 0x7F
    small = size.to(tl.int32).to(tl.float32) * 0.001953125
    normal = ((size << 20) + 0x3C000000).to(tl.float32, bitcast=True)
    size = tl.where(size < 8, small, normal)
    number = (size.to(tl.uint32, bitcast=True) | ((codes & 0x80) << 24)).to(
        tl.float32, bitcast=True
    )
    return number * _root(ranks) * 0.03125


@triton.jit
def exp_avg(m, ranks, words):
    """And the code of m, up or down at random; 0 beside a v of 0."""
    scaled = m * tl.div_rn(1.0, _root(ranks))
    sign = scaled.to(tl.uint32, bitcast=True) & 0x80000000
    size = tl.abs(scaled) * 0.125
    size = tl.where(size < 1.75, size, 1.75)
    part = words >> 27
    bits = size.to(tl.uint32, bitcast=True)
    normal = (bits + (part << 15) + 0x4000 - 0x38000000) >> 20
    share = part.to(tl.int32).to(tl.float32) * 0.03125 + 0.015625
    # below 2^-14 a multiple of 2^-17
    is_small = size < 6.103515625e-05
    small = (tl.where(is_small, size, 0.0) * 131072.0 + share).to(tl.int32).to(tl.uint32)
    code = tl.where(is_small, small, normal) | (sign >> 24)
    return tl.where(ranks == 0, 0, code).to(tl.uint8)


# -- e and y ---------------------------------------------------------------------------------------------


@triton.jit
def displacement(e, words):
    """fp32 -> fp16 with 10 bits of the word and a half."""
    return sixteen_bits.displacement(e, ((words >> 5) & 0x1FF8) | 4)


@triton.jit
def join(upper, lower):
    """y of the bf16 parameter and the int8 beside it."""
    return sixteen_bits.join(upper, lower.to(tl.int32) << 8)


@triton.jit
def split(y, added):
    """And the parts of y, to 24 bits: with a random ``added`` below 256 the mean is right, 128 is to
    nearest."""
    bits = tl.where(y == y, y.to(tl.uint32, bitcast=True), 0x7FC00000)
    bits = (bits + added) & 0xFFFFFF00
    upper = ((bits + 0x8000) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return upper, (bits >> 8).to(tl.uint8).to(tl.int8, bitcast=True)


@triton.jit
def split_y_of_x(upper, lower, by_e, param):
    """The parts of y after ``param`` was the rounding of x = y - by_e; what was written to it since wins."""
    untouched = round_to(join(upper, lower) - by_e, tl.bfloat16) == param
    written_upper, written_lower = split(param.to(tl.float32) + by_e, 0x80)
    return tl.where(untouched, upper, written_upper), tl.where(untouched, lower, written_lower)
