"""State in 16 bits a number (``Format.HALF``): random words, and what is stored of float32 values.

The same bits as csrc/math/random_rounding.h and csrc/math/split_rule.h. All words are uint32 and wrap around.
"""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton.memory import round_to


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise_key(settings_ptr, tensors_ptr, slot, COLUMNS: tl.constexpr):
    """Of one tensor in one step, after finalize: the step is the tensor's own count, this step included."""
    seed = tl.load(settings_ptr + COLUMNS.Setting.ROUNDING_SEED).to(tl.int64).to(tl.uint32)
    step = tl.load(tensors_ptr + slot * COLUMNS.Scalar.WIDTH + COLUMNS.Scalar.STEP)
    step = step.to(tl.int64).to(tl.uint32)
    a = _mix(_mix(seed ^ 0x9E3779B9) + _mix(slot.to(tl.uint32)) * 0x85EBCA6B + step)
    return a, _mix(a ^ 0xA511E9B3)


@triton.jit
def random_words(key_a, key_b, elements, tensor, numel, COLUMNS: tl.constexpr):
    """32 bits for each of ``elements``, int64 numbers of this memory: hashes of their place in the whole."""
    run = tl.load(tensor + COLUMNS.Row.INDEX_RUN)
    index = elements
    if run != numel:  # runs of the whole: see layout.Row
        index = elements // run * tl.load(tensor + COLUMNS.Row.INDEX_STRIDE) + elements % run
    index += tl.load(tensor + COLUMNS.Row.INDEX_START)
    h = (index & 0xFFFFFFFF).to(tl.uint32) + key_a
    h = h ^ (h >> 16)
    h = h * 0x7FEB352D
    h = h ^ (h >> 15)
    h = h + key_b
    h = h * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def turned(words):
    """For what is rounded once more in the same step, by other bits than the first time."""
    return (words << 16) | (words >> 16)


@triton.jit
def exp_avg_sq(v, words):
    """fp32 -> bf16, up or down at random: 16 bits of the word count below the last place."""
    bits = (v.to(tl.uint32, bitcast=True) + (words >> 16)) >> 16
    bits = tl.where(v == v, bits, 0x7FC0)
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def displacement(e, words):
    """fp32 -> fp16, up or down at random by 13 bits of the word; held at the largest finite value."""
    bits = e.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    part = words & 0x1FFF
    normal = (size + part - 0x38000000) >> 13
    normal = tl.where(normal > 0x7BFF, 0x7BFF, normal)
    # below 2^-14 a multiple of 2^-24
    is_small = size < 0x38800000
    small = tl.where(is_small, tl.abs(e), 0.0) + part.to(tl.float32) * 7.275957614183426e-12
    small = (small * 16777216.0).to(tl.int32).to(tl.uint32)
    stored = tl.where(is_small, small, normal)
    stored = tl.where(e == e, stored, 0x7E00) | ((bits >> 16) & 0x8000)
    return stored.to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def join(upper, lower):
    """y of its halves, bf16 and int16. A zero that was written over the upper one is a zero."""
    high = upper.to(tl.uint16, bitcast=True).to(tl.uint32)
    low = lower.to(tl.int32)
    written = ((high & 0x7FFF) == 0) & (low < 0)
    low = tl.where(written, 0, low).to(tl.uint32, bitcast=True)
    return ((high << 16) + low).to(tl.float32, bitcast=True)


@triton.jit
def split(y):
    """And the halves: the upper one is the nearest, at a tie the larger in magnitude."""
    bits = tl.where(y == y, y.to(tl.uint32, bitcast=True), 0x7FC00000)
    upper = ((bits + 0x8000) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return upper, bits.to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def split_y_of_x(upper, lower, by_e, param):
    """The halves of y after ``param`` was the rounding of x = y - by_e; what was written to it since wins."""
    untouched = round_to(join(upper, lower) - by_e, tl.bfloat16) == param
    written_upper, written_lower = split(param.to(tl.float32) + by_e)
    return tl.where(untouched, upper, written_upper), tl.where(untouched, lower, written_lower)
