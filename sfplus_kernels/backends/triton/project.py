"""What brings a row of z to a fixed norm, after its update: in fewer than 32 bits what is stored of it."""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton import eight_bits, sixteen_bits
from sfplus_kernels.backends.triton.memory import round_to


@triton.jit
def _read(
    y_ptr,
    param_ptr,
    e_ptr,
    at,
    mask,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    HAS_DISPLACEMENT: tl.constexpr,
    HALF: tl.constexpr,
    QUARTER: tl.constexpr,
):
    """y and e; of one that there is not anything."""
    y = tl.load(y_ptr + at, mask=mask, other=0)
    if PARAM_DTYPE != STATE_DTYPE and (HALF or QUARTER):
        param = tl.load(param_ptr + at, mask=mask, other=0.0)
        y = sixteen_bits.join(param, y) if HALF else eight_bits.join(param, y)
    e = y
    if HAS_DISPLACEMENT:
        e = tl.load(e_ptr + at, mask=mask, other=0.0).to(STATE_DTYPE)
    return y, e


@triton.jit
def project_row(
    y_ptr,
    param_ptr,
    e_ptr,
    start,
    length,
    group,
    groups_ptr,
    hyper_ptr,
    group_coefs_ptr,
    key_a,
    key_b,
    tensor,
    numel,
    COLUMNS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    HAS_DISPLACEMENT: tl.constexpr,
    HALF: tl.constexpr,
    QUARTER: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One row, which this program has just written and has in its caches: a sweep for the norm of z, and one
    that takes off what is too much, as if delta had been so much more."""
    row_norm = tl.load(hyper_ptr + group * COLUMNS.Hyper.WIDTH + COLUMNS.Hyper.ROW_NORM)
    beta = tl.load(groups_ptr + group * COLUMNS.Group.WIDTH + COLUMNS.Group.Y_BETA)
    coefs = group_coefs_ptr + group * COLUMNS.GroupCoef.WIDTH
    delta_to_y = tl.load(coefs + COLUMNS.GroupCoef.DELTA_TO_Y).to(STATE_DTYPE)
    e_kept = tl.load(coefs + COLUMNS.GroupCoef.E_KEPT).to(STATE_DTYPE)
    e_to_z = beta.to(STATE_DTYPE)
    lanes = tl.arange(0, BLOCK_SIZE)

    squares = tl.full((BLOCK_SIZE,), 0, tl.float64)
    for offset in range(0, length, BLOCK_SIZE):
        at = offset + lanes
        z, e = _read(
            y_ptr, param_ptr, e_ptr, at, at < length,
            PARAM_DTYPE, STATE_DTYPE, HAS_DISPLACEMENT, HALF, QUARTER,
        )  # fmt: skip
        if HAS_DISPLACEMENT:
            z = z + e_to_z * e
        z = z.to(tl.float64)
        squares += z * z
    norm = tl.sqrt(tl.sum(squares))
    # a row of zeros stays
    excess = tl.where(norm > 0, 1 - row_norm / norm, 0.0).to(STATE_DTYPE)

    for offset in range(0, length, BLOCK_SIZE):
        at = offset + lanes
        mask = at < length
        y, e = _read(
            y_ptr, param_ptr, e_ptr, at, mask,
            PARAM_DTYPE, STATE_DTYPE, HAS_DISPLACEMENT, HALF, QUARTER,
        )  # fmt: skip
        words = at.to(tl.uint32)
        if HALF or QUARTER:
            words = sixteen_bits.random_words(key_a, key_b, start + at, tensor, numel, COLUMNS)
            words = sixteen_bits.turned(words)
        if HAS_DISPLACEMENT:
            delta = excess * (y + e_to_z * e)
            e = e - e_kept * delta
            if HALF:
                e = sixteen_bits.displacement(e, words)
            if QUARTER:
                e = eight_bits.displacement(e, words)
            tl.store(e_ptr + at, e, mask=mask)
        else:
            delta = excess * y
        y = y + delta_to_y * delta
        if PARAM_DTYPE == STATE_DTYPE:
            tl.store(y_ptr + at, y, mask=mask)
        elif HALF or QUARTER:
            param, lower = sixteen_bits.split(y) if HALF else eight_bits.split(y, words & 0xFF)
            tl.store(y_ptr + at, lower, mask=mask)
            tl.store(param_ptr + at, param, mask=mask)
        else:
            tl.store(y_ptr + at, y, mask=mask)
            tl.store(param_ptr + at, round_to(y, PARAM_DTYPE), mask=mask)
