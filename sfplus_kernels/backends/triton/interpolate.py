"""Parameters between y, x and z: the moves of ``backends.layout.Move``."""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton import eight_bits, sixteen_bits
from sfplus_kernels.backends.triton.memory import chunk_length, round_to, y_or_written


@triton.jit
def _interpolate_block(
    y_ptr,
    param_ptr,
    e_ptr,
    offsets,
    mask,
    e_to_y,
    e_to_x,
    omega,
    e_kept,
    COLUMNS: tl.constexpr,
    MOVE: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
):
    """Elements ``offsets`` of one chunk. ``mask`` is None where all of them exist."""
    FOLLOWS: tl.constexpr = PARAM_DTYPE != STATE_DTYPE  # the parameter is a rounding of y
    y = tl.load(y_ptr + offsets, mask=mask)
    e = tl.load(e_ptr + offsets, mask=mask)
    if FOLLOWS:
        param = tl.load(param_ptr + offsets, mask=mask)
        if MOVE == COLUMNS.Move.ABSORB_Z:  # what happened to the rounding of z
            y = y + (param.to(STATE_DTYPE) - round_to(y, PARAM_DTYPE).to(STATE_DTYPE))
        elif MOVE == COLUMNS.Move.TO_Y:  # the parameter was left as the rounding of x
            untouched = round_to(y + -e_to_y * e, PARAM_DTYPE) == param
            y = tl.where(untouched, y, param.to(STATE_DTYPE) + e_to_y * e)
        else:
            y = y_or_written(y, param)
    moved = y
    if MOVE == COLUMNS.Move.EXPOSE_Z:
        tl.store(e_ptr + offsets, y + e_to_x * e, mask=mask)
        moved = y + (e_to_y * e - omega * y)
    elif MOVE == COLUMNS.Move.ABSORB_Z:
        e = e_kept * (y - e)
        tl.store(e_ptr + offsets, e, mask=mask)
        moved = y - e_to_y * e
    elif not (FOLLOWS and MOVE == COLUMNS.Move.TO_Y):
        moved = y + e_to_y * e
    tl.store(y_ptr + offsets, y if FOLLOWS and MOVE == COLUMNS.Move.TO_X else moved, mask=mask)
    if FOLLOWS:
        tl.store(param_ptr + offsets, round_to(moved, PARAM_DTYPE), mask=mask)


@triton.jit
def _interpolate_half_block(
    y_ptr,
    param_ptr,
    kept_ptr,
    e_ptr,
    offsets,
    mask,
    e_to_y,
    COLUMNS: tl.constexpr,
    MOVE: tl.constexpr,
    SPLIT: tl.constexpr,
    QUARTER: tl.constexpr,
):
    """The same in ``Format.HALF``: e is read and never written. SPLIT: y is in two parts, and while the
    parameter holds x the upper one is at ``kept_ptr``. In ``Format.QUARTER`` the lower part has 8 bits."""
    y = tl.load(y_ptr + offsets, mask=mask)
    by_e = e_to_y * tl.load(e_ptr + offsets, mask=mask).to(tl.float32)
    if not SPLIT:
        tl.store(y_ptr + offsets, y + by_e, mask=mask)
    else:
        kept = tl.load(kept_ptr + offsets, mask=mask)
        if MOVE == COLUMNS.Move.TO_X:
            whole = eight_bits.join(kept, y) if QUARTER else sixteen_bits.join(kept, y)
            tl.store(param_ptr + offsets, round_to(whole + by_e, tl.bfloat16), mask=mask)
        else:
            if MOVE == COLUMNS.Move.TO_Y:
                param = tl.load(param_ptr + offsets, mask=mask)
                if QUARTER:
                    upper, lower = eight_bits.split_y_of_x(kept, y, by_e, param)
                else:
                    upper, lower = sixteen_bits.split_y_of_x(kept, y, by_e, param)
            else:
                tl.static_assert(not QUARTER, "y would be rounded twice a step")
                upper, lower = sixteen_bits.split(sixteen_bits.join(kept, y) + by_e)
            tl.store(param_ptr + offsets, upper, mask=mask)
            tl.store(y_ptr + offsets, lower, mask=mask)


@triton.jit(do_not_specialize=["first_chunk"])
def interpolate_kernel(
    rows_ptr,
    chunks_ptr,
    globals_ptr,
    hyper_ptr,
    group_coefs_ptr,
    tensors_ptr,
    tensor_coefs_ptr,
    first_chunk,
    COLUMNS: tl.constexpr,
    MOVE: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    FORMAT: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One chunk per program."""
    HALF: tl.constexpr = FORMAT != COLUMNS.Format.FULL
    QUARTER: tl.constexpr = FORMAT == COLUMNS.Format.QUARTER
    SPLIT: tl.constexpr = HALF and PARAM_DTYPE != STATE_DTYPE
    E_DTYPE: tl.constexpr = tl.float16 if HALF else STATE_DTYPE
    Y_DTYPE: tl.constexpr = (tl.int8 if QUARTER else tl.int16) if SPLIT else STATE_DTYPE
    E_BYTES: tl.constexpr = E_DTYPE.primitive_bitwidth // 8
    Y_BYTES: tl.constexpr = Y_DTYPE.primitive_bitwidth // 8
    E_ALIGNMENT: tl.constexpr = VECTOR * E_BYTES
    Y_ALIGNMENT: tl.constexpr = VECTOR * Y_BYTES if VECTOR * Y_BYTES < 16 else 16
    PARAM_BYTES: tl.constexpr = PARAM_DTYPE.primitive_bitwidth // 8
    chunk = chunks_ptr + (first_chunk + tl.program_id(0)).to(tl.int64) * COLUMNS.Chunk.WIDTH
    row = tl.load(chunk + COLUMNS.Chunk.ROW)
    start = tl.load(chunk + COLUMNS.Chunk.START)
    tensor = rows_ptr + row * COLUMNS.Row.WIDTH
    y_address = tl.load(tensor + COLUMNS.Row.Y) + start * Y_BYTES
    e_address = tl.load(tensor + COLUMNS.Row.DISPLACEMENT) + start * E_BYTES
    numel = tl.load(tensor + COLUMNS.Row.NUMEL)
    group = tl.load(tensor + COLUMNS.Row.GROUP)
    slot = tl.load(tensor + COLUMNS.Row.SLOT)
    aligned = (y_address % Y_ALIGNMENT == 0) & (e_address % E_ALIGNMENT == 0)

    # coefficients, formed in fp64
    b = tl.load(tensors_ptr + slot * COLUMNS.Scalar.WIDTH + COLUMNS.Scalar.Y_BETA)
    e_to_x = (b - 1).to(STATE_DTYPE)
    e_to_y = b.to(STATE_DTYPE)  # towards z
    if MOVE == COLUMNS.Move.TO_X:
        e_to_y = e_to_x
    elif MOVE == COLUMNS.Move.TO_Y:
        e_to_y = (1 - b).to(STATE_DTYPE)
    elif MOVE == COLUMNS.Move.SHIFT:
        coefs = tensor_coefs_ptr + slot * COLUMNS.TensorCoef.WIDTH
        e_to_y = tl.load(coefs + COLUMNS.TensorCoef.E_TO_Y).to(STATE_DTYPE)
    hyper = hyper_ptr + group * COLUMNS.Hyper.WIDTH
    lr = tl.load(hyper + COLUMNS.Hyper.LR)
    omega = (lr * tl.load(hyper + COLUMNS.Hyper.WEIGHT_DECAY)).to(STATE_DTYPE)
    skipped = tl.load(globals_ptr + COLUMNS.Global.SKIP) != 0  # then x stays
    coefs = group_coefs_ptr + group * COLUMNS.GroupCoef.WIDTH
    e_kept = tl.load(coefs + COLUMNS.GroupCoef.E_KEPT)
    e_kept = tl.where(skipped, 1.0, e_kept).to(STATE_DTYPE)

    # two sets of pointers: about the first one the compiler knows the alignment
    y_vec = tl.multiple_of(y_address.to(tl.pointer_type(Y_DTYPE)), Y_ALIGNMENT)
    e_vec = tl.multiple_of(e_address.to(tl.pointer_type(E_DTYPE)), E_ALIGNMENT)
    y_ptr = y_address.to(tl.pointer_type(Y_DTYPE))
    e_ptr = e_address.to(tl.pointer_type(E_DTYPE))
    param_vec = y_vec
    param_ptr = y_ptr
    if PARAM_DTYPE != STATE_DTYPE:
        param_address = tl.load(tensor + COLUMNS.Row.PARAM) + start * PARAM_BYTES
        PARAM_ALIGNMENT: tl.constexpr = VECTOR * PARAM_BYTES
        aligned = aligned & (param_address % PARAM_ALIGNMENT == 0)
        param_vec = param_address.to(tl.pointer_type(PARAM_DTYPE))
        param_vec = tl.multiple_of(param_vec, PARAM_ALIGNMENT)
        param_ptr = param_address.to(tl.pointer_type(PARAM_DTYPE))

    kept_vec = param_vec
    kept_ptr = param_ptr
    if SPLIT and MOVE != COLUMNS.Move.SHIFT:
        kept_address = tl.load(tensor + COLUMNS.Row.Y_HIGH) + start * PARAM_BYTES
        aligned = aligned & (kept_address % 16 == 0)
        kept_vec = tl.multiple_of(kept_address.to(tl.pointer_type(PARAM_DTYPE)), 16)
        kept_ptr = kept_address.to(tl.pointer_type(PARAM_DTYPE))

    # whole aligned blocks without a mask, so that accesses are vectors; then what is left
    length = chunk_length(tensor, start, numel, COLUMNS, CHUNK_SIZE)
    whole = tl.where(aligned, length // BLOCK_SIZE * BLOCK_SIZE, 0)
    lanes = tl.arange(0, BLOCK_SIZE)
    for offset in range(0, whole, BLOCK_SIZE):
        if HALF:
            _interpolate_half_block(
                y_vec,
                param_vec,
                kept_vec,
                e_vec,
                offset + lanes,
                None,
                e_to_y,
                COLUMNS,
                MOVE,
                SPLIT,
                QUARTER,
            )
        else:
            _interpolate_block(
                y_vec, param_vec, e_vec, offset + lanes, None,
                e_to_y, e_to_x, omega, e_kept, COLUMNS, MOVE, PARAM_DTYPE, STATE_DTYPE,
            )  # fmt: skip
    # half blocks, for the reason given in update
    TAIL_SIZE: tl.constexpr = BLOCK_SIZE // 2
    tail_lanes = tl.arange(0, TAIL_SIZE)
    for offset in range(whole, length, TAIL_SIZE):
        tail = offset + tail_lanes
        if HALF:
            _interpolate_half_block(
                y_ptr, param_ptr, kept_ptr, e_ptr, tail, tail < length,
                e_to_y, COLUMNS, MOVE, SPLIT, QUARTER,
            )  # fmt: skip
        else:
            _interpolate_block(
                y_ptr, param_ptr, e_ptr, tail, tail < length,
                e_to_y, e_to_x, omega, e_kept, COLUMNS, MOVE, PARAM_DTYPE, STATE_DTYPE,
            )  # fmt: skip
