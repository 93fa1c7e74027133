"""Parameters from y to x and back: x = y - (1 - b) e."""

import triton
import triton.language as tl

from sfplus_kernels.kernels.memory import round_to


@triton.jit
def _interpolate_block(
    y_ptr,
    param_ptr,
    e_ptr,
    offsets,
    mask,
    e_share,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    TO_X: tl.constexpr,
):
    """Elements ``offsets`` of one chunk. ``mask`` is None where all of them exist."""
    p = tl.load(y_ptr + offsets, mask=mask)
    if TO_X:
        p = p - e_share * tl.load(e_ptr + offsets, mask=mask)
    elif PARAM_DTYPE == STATE_DTYPE:
        p = p + e_share * tl.load(e_ptr + offsets, mask=mask)
    tl.store(param_ptr + offsets, round_to(p, PARAM_DTYPE), mask=mask)


@triton.jit(do_not_specialize=["first_chunk"])
def interpolate_kernel(
    rows_ptr,
    chunks_ptr,
    tensors_ptr,
    first_chunk,
    COLUMNS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    TO_X: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One chunk per program. A parameter that is not y itself is written, its y only read."""
    STATE_BYTES: tl.constexpr = STATE_DTYPE.primitive_bitwidth // 8
    PARAM_BYTES: tl.constexpr = PARAM_DTYPE.primitive_bitwidth // 8
    chunk = chunks_ptr + (first_chunk + tl.program_id(0)).to(tl.int64) * COLUMNS.Chunk.WIDTH
    row = tl.load(chunk + COLUMNS.Chunk.ROW)
    start = tl.load(chunk + COLUMNS.Chunk.START)
    tensor = rows_ptr + row * COLUMNS.Row.WIDTH
    y_address = tl.load(tensor + COLUMNS.Row.Y) + start * STATE_BYTES
    e_address = tl.load(tensor + COLUMNS.Row.DISPLACEMENT) + start * STATE_BYTES
    numel = tl.load(tensor + COLUMNS.Row.NUMEL)
    slot = tl.load(tensor + COLUMNS.Row.SLOT)
    b = tl.load(tensors_ptr + slot * COLUMNS.Scalar.WIDTH + COLUMNS.Scalar.Y_BETA)
    e_share = (1 - b).to(STATE_DTYPE)
    aligned = (y_address | e_address) % 16 == 0

    # two sets of pointers: about the first one the compiler knows the alignment
    y_vec = tl.multiple_of(y_address.to(tl.pointer_type(STATE_DTYPE)), 16)
    e_vec = tl.multiple_of(e_address.to(tl.pointer_type(STATE_DTYPE)), 16)
    y_ptr = y_address.to(tl.pointer_type(STATE_DTYPE))
    e_ptr = e_address.to(tl.pointer_type(STATE_DTYPE))
    param_vec = y_vec
    param_ptr = y_ptr
    if PARAM_DTYPE != STATE_DTYPE:
        param_address = tl.load(tensor + COLUMNS.Row.PARAM) + start * PARAM_BYTES
        PARAM_ALIGNMENT: tl.constexpr = VECTOR * PARAM_BYTES
        aligned = aligned & (param_address % PARAM_ALIGNMENT == 0)
        param_vec = param_address.to(tl.pointer_type(PARAM_DTYPE))
        param_vec = tl.multiple_of(param_vec, PARAM_ALIGNMENT)
        param_ptr = param_address.to(tl.pointer_type(PARAM_DTYPE))

    # whole aligned blocks without a mask, so that accesses are vectors; then what is left
    length = tl.minimum(numel - start, CHUNK_SIZE).to(tl.int32)
    whole = tl.where(aligned, length // BLOCK_SIZE * BLOCK_SIZE, 0)
    lanes = tl.arange(0, BLOCK_SIZE)
    for offset in range(0, whole, BLOCK_SIZE):
        _interpolate_block(
            y_vec, param_vec, e_vec, offset + lanes, None,
            e_share, PARAM_DTYPE, STATE_DTYPE, TO_X,
        )  # fmt: skip
    # half blocks, for the reason given in update
    TAIL_SIZE: tl.constexpr = BLOCK_SIZE // 2
    tail_lanes = tl.arange(0, TAIL_SIZE)
    for offset in range(whole, length, TAIL_SIZE):
        tail = offset + tail_lanes
        _interpolate_block(
            y_ptr, param_ptr, e_ptr, tail, tail < length,
            e_share, PARAM_DTYPE, STATE_DTYPE, TO_X,
        )  # fmt: skip
