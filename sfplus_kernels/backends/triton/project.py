"""What brings a row of z to a fixed norm, after its update."""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton.memory import round_to


@triton.jit
def project_row(
    y_ptr,
    param_ptr,
    e_ptr,
    length,
    group,
    groups_ptr,
    hyper_ptr,
    group_coefs_ptr,
    COLUMNS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    HAS_DISPLACEMENT: tl.constexpr,
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
        z = tl.load(y_ptr + at, mask=at < length, other=0.0)
        if HAS_DISPLACEMENT:
            z = z + e_to_z * tl.load(e_ptr + at, mask=at < length, other=0.0)
        z = z.to(tl.float64)
        squares += z * z
    norm = tl.sqrt(tl.sum(squares))
    # a row of zeros stays
    excess = tl.where(norm > 0, 1 - row_norm / norm, 0.0).to(STATE_DTYPE)

    for offset in range(0, length, BLOCK_SIZE):
        at = offset + lanes
        y = tl.load(y_ptr + at, mask=at < length, other=0.0)
        if HAS_DISPLACEMENT:
            e = tl.load(e_ptr + at, mask=at < length, other=0.0)
            delta = excess * (y + e_to_z * e)
            tl.store(e_ptr + at, e - e_kept * delta, mask=at < length)
        else:
            delta = excess * y
        y = y + delta_to_y * delta
        tl.store(y_ptr + at, y, mask=at < length)
        if PARAM_DTYPE != STATE_DTYPE:
            tl.store(param_ptr + at, round_to(y, PARAM_DTYPE), mask=at < length)
