"""The reduction pass: sum |g|, sum g e and sum g^2, as partial sums in fixed slots."""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton.finish import finish_step
from sfplus_kernels.backends.triton.memory import chunk_length
from sfplus_kernels.backends.triton.tickets import draws_last


@triton.jit(
    do_not_specialize=[
        "first_chunk", "n_chunks", "first_partial", "n_partials", "shards", "n_groups", "n_rows",
    ],
    do_not_specialize_on_alignment=["loss_ptr"],
)  # fmt: skip
def reduce_kernel(
    rows_ptr,
    gradients_ptr,
    chunks_ptr,
    partials_ptr,
    first_chunk,
    n_chunks,
    first_partial,
    n_partials,
    shards,
    loss_ptr,
    globals_ptr,
    groups_ptr,
    hyper_ptr,
    settings_ptr,
    tensors_ptr,
    group_coefs_ptr,
    tensor_coefs_ptr,
    tickets_ptr,
    n_groups,
    n_rows,
    COLUMNS: tl.constexpr,
    WITH_E: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    E_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MAX_COEFFICIENT: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """Program i sums the chunks i, i + n_partials, ... of its launch into slot i, ``shards`` times.

    Without WITH_E only gradients are read, and the sum of g e is 0. Where there are tickets this is the
    last launch of the pass, and its program that draws the last of them finishes the step.
    """
    E_BYTES: tl.constexpr = E_DTYPE.primitive_bitwidth // 8
    GRAD_BYTES: tl.constexpr = GRAD_DTYPE.primitive_bitwidth // 8
    GRAD_ALIGNMENT: tl.constexpr = VECTOR * GRAD_BYTES if VECTOR * GRAD_BYTES < 16 else 16
    program = tl.program_id(0)
    lanes = tl.arange(0, BLOCK_SIZE)
    # one accumulator per lane: each adds up few of the terms in the state's dtype
    l1 = tl.full((BLOCK_SIZE,), 0, STATE_DTYPE)
    dot = tl.full((BLOCK_SIZE,), 0, STATE_DTYPE)
    squares = tl.full((BLOCK_SIZE,), 0, STATE_DTYPE)
    for index in range(program, n_chunks, n_partials):
        chunk = chunks_ptr + (first_chunk + index).to(tl.int64) * COLUMNS.Chunk.WIDTH
        row = tl.load(chunk + COLUMNS.Chunk.ROW)
        start = tl.load(chunk + COLUMNS.Chunk.START)
        tensor = rows_ptr + row * COLUMNS.Row.WIDTH
        numel = tl.load(tensor + COLUMNS.Row.NUMEL)
        e_address = tl.load(tensor + COLUMNS.Row.DISPLACEMENT) + start * E_BYTES
        g_address = tl.load(gradients_ptr + row) + start * GRAD_BYTES
        aligned = (e_address % 16 == 0) & (g_address % GRAD_ALIGNMENT == 0)

        # whole aligned blocks without a mask, so that loads are vectors; then what is left
        length = chunk_length(tensor, start, numel, COLUMNS, CHUNK_SIZE)
        whole = tl.where(aligned, length // BLOCK_SIZE * BLOCK_SIZE, 0)
        e_vec = tl.multiple_of(e_address.to(tl.pointer_type(E_DTYPE)), 16)
        g_vec = tl.multiple_of(g_address.to(tl.pointer_type(GRAD_DTYPE)), GRAD_ALIGNMENT)
        for offset in range(0, whole, BLOCK_SIZE):
            g = tl.load(g_vec + offset + lanes).to(STATE_DTYPE)
            if WITH_E:
                dot += g * tl.load(e_vec + offset + lanes).to(STATE_DTYPE)
            l1 += tl.abs(g)
            squares += g * g
        e_ptr = e_address.to(tl.pointer_type(E_DTYPE))
        g_ptr = g_address.to(tl.pointer_type(GRAD_DTYPE))
        for offset in range(whole, length, BLOCK_SIZE):
            mask = offset + lanes < length
            g = tl.load(g_ptr + offset + lanes, mask=mask, other=0.0).to(STATE_DTYPE)
            if WITH_E:
                e = tl.load(e_ptr + offset + lanes, mask=mask, other=0.0)
                dot += g * e.to(STATE_DTYPE)
            l1 += tl.abs(g)
            squares += g * g

    slot = partials_ptr + (first_partial + program) * COLUMNS.Sum.WIDTH
    weight = shards.to(tl.float64)
    tl.store(slot + COLUMNS.Sum.GRAD_L1, weight * tl.sum(l1.to(tl.float64)))
    tl.store(slot + COLUMNS.Sum.GRAD_DOT_E, weight * tl.sum(dot.to(tl.float64)))
    tl.store(slot + COLUMNS.Sum.GRAD_SQ, weight * tl.sum(squares.to(tl.float64)))
    if tickets_ptr is not None:  # noqa: SIM102  the compiler knows this, and not the next one
        if draws_last(tickets_ptr):
            finish_step(
                partials_ptr, rows_ptr, loss_ptr, globals_ptr, groups_ptr, hyper_ptr, settings_ptr,
                tensors_ptr, group_coefs_ptr, tensor_coefs_ptr, first_partial + n_partials, n_groups,
                n_rows, COLUMNS, MAX_COEFFICIENT, SUM_BLOCK, LANES,
            )  # fmt: skip
