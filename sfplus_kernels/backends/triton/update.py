"""The update pass: one read of g, y, e, m, v and one write of y, e, m, v (of e, m and v where the algorithm
keeps them), and of the parameter if it is not y itself, which is read too.

FORMAT is of ``layout.Format``: in HALF m, v and e are kept in 16 bits, and y of a bf16 parameter in two
halves; in QUARTER moments are codes of 8 bits, and y of a bf16 parameter has 24 bits."""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton import sixteen_bits
from sfplus_kernels.backends.triton.finish import finish_step
from sfplus_kernels.backends.triton.memory import chunk_length
from sfplus_kernels.backends.triton.project import project_row
from sfplus_kernels.backends.triton.tickets import draws_first, meet
from sfplus_kernels.backends.triton.update_blocks import (
    add_drift,
    total,
    update_block,
    update_quarter_block,
    zeros,
)


@triton.jit(
    do_not_specialize=["first_chunk", "n_groups", "n_rows"],
    do_not_specialize_on_alignment=["loss_ptr"],
)
def update_kernel(
    rows_ptr,
    gradients_ptr,
    chunks_ptr,
    first_chunk,
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
    drift_ptr,
    COLUMNS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    HAS_EXP_AVG: tl.constexpr,
    HAS_EXP_AVG_SQ: tl.constexpr,
    HAS_DISPLACEMENT: tl.constexpr,
    FORMAT: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MAX_COEFFICIENT: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """One chunk per program; nothing on a skipped step.

    Where there are tickets no kernel came before: the first program forms the coefficients, of no sums. Where
    there is ``drift_ptr`` each program leaves the sums of ``layout.Drift`` in the slot of its chunk.
    """
    HALF: tl.constexpr = FORMAT == COLUMNS.Format.HALF
    QUARTER: tl.constexpr = FORMAT == COLUMNS.Format.QUARTER
    SPLIT: tl.constexpr = FORMAT != COLUMNS.Format.FULL and PARAM_DTYPE != STATE_DTYPE
    M_DTYPE: tl.constexpr = (
        tl.uint8 if QUARTER else tl.bfloat16 if HALF else STATE_DTYPE
    )  # and of v
    E_DTYPE: tl.constexpr = tl.float16 if HALF or QUARTER else STATE_DTYPE
    Y_DTYPE: tl.constexpr = (tl.int8 if QUARTER else tl.int16) if SPLIT else STATE_DTYPE
    M_BYTES: tl.constexpr = M_DTYPE.primitive_bitwidth // 8
    E_BYTES: tl.constexpr = E_DTYPE.primitive_bitwidth // 8
    Y_BYTES: tl.constexpr = Y_DTYPE.primitive_bitwidth // 8
    M_ALIGNMENT: tl.constexpr = VECTOR * M_BYTES
    E_ALIGNMENT: tl.constexpr = VECTOR * E_BYTES
    Y_ALIGNMENT: tl.constexpr = VECTOR * Y_BYTES if VECTOR * Y_BYTES < 16 else 16
    PARAM_BYTES: tl.constexpr = PARAM_DTYPE.primitive_bitwidth // 8
    GRAD_BYTES: tl.constexpr = GRAD_DTYPE.primitive_bitwidth // 8
    GRAD_ALIGNMENT: tl.constexpr = VECTOR * GRAD_BYTES if VECTOR * GRAD_BYTES < 16 else 16
    if tickets_ptr is not None:
        first = draws_first(tickets_ptr)
        if first:
            finish_step(
                None, rows_ptr, loss_ptr, globals_ptr, groups_ptr, hyper_ptr, settings_ptr, tensors_ptr,
                group_coefs_ptr, tensor_coefs_ptr, 0, n_groups, n_rows,
                COLUMNS, MAX_COEFFICIENT, SUM_BLOCK, LANES,
            )  # fmt: skip
        meet(first, tickets_ptr)
    if tl.load(globals_ptr + COLUMNS.Global.SKIP) == 0:
        chunk = chunks_ptr + (first_chunk + tl.program_id(0)).to(tl.int64) * COLUMNS.Chunk.WIDTH
        row = tl.load(chunk + COLUMNS.Chunk.ROW)
        start = tl.load(chunk + COLUMNS.Chunk.START)
        tensor = rows_ptr + row * COLUMNS.Row.WIDTH
        y_address = tl.load(tensor + COLUMNS.Row.Y) + start * Y_BYTES
        m_address = tl.load(tensor + COLUMNS.Row.EXP_AVG)  # 0, which is aligned, if there is none
        v_address = tl.load(tensor + COLUMNS.Row.EXP_AVG_SQ)
        if HAS_EXP_AVG:
            m_address += start * M_BYTES
        if HAS_EXP_AVG_SQ:
            v_address += start * M_BYTES
        e_address = tl.load(tensor + COLUMNS.Row.DISPLACEMENT)
        if HAS_DISPLACEMENT:
            e_address += start * E_BYTES
        g_address = tl.load(gradients_ptr + row) + start * GRAD_BYTES
        numel = tl.load(tensor + COLUMNS.Row.NUMEL)
        group = tl.load(tensor + COLUMNS.Row.GROUP)
        slot = tl.load(tensor + COLUMNS.Row.SLOT)
        aligned = (y_address % Y_ALIGNMENT == 0) & (e_address % E_ALIGNMENT == 0)
        aligned = aligned & ((m_address | v_address) % M_ALIGNMENT == 0)
        aligned = aligned & (g_address % GRAD_ALIGNMENT == 0)

        coefs = group_coefs_ptr + group * COLUMNS.GroupCoef.WIDTH
        beta1 = tl.load(coefs + COLUMNS.GroupCoef.BETA1).to(STATE_DTYPE)
        grad_to_m = tl.load(coefs + COLUMNS.GroupCoef.GRAD_TO_M).to(STATE_DTYPE)
        beta2 = tl.load(coefs + COLUMNS.GroupCoef.BETA2).to(STATE_DTYPE)
        grad_to_v = tl.load(coefs + COLUMNS.GroupCoef.GRAD_TO_V).to(STATE_DTYPE)
        eps = tl.load(coefs + COLUMNS.GroupCoef.EPS).to(STATE_DTYPE)
        omega = tl.load(coefs + COLUMNS.GroupCoef.OMEGA).to(STATE_DTYPE)
        e_kept = tl.load(coefs + COLUMNS.GroupCoef.E_KEPT).to(STATE_DTYPE)
        delta_to_y = tl.load(coefs + COLUMNS.GroupCoef.DELTA_TO_Y).to(STATE_DTYPE)
        m_to_u = tl.load(coefs + COLUMNS.GroupCoef.M_TO_U).to(STATE_DTYPE)
        grad_to_u = tl.load(coefs + COLUMNS.GroupCoef.GRAD_TO_U).to(STATE_DTYPE)
        coefs = tensor_coefs_ptr + slot * COLUMNS.TensorCoef.WIDTH
        step_size = tl.load(coefs + COLUMNS.TensorCoef.STEP_SIZE).to(STATE_DTYPE)
        inv_sqrt_bc2 = tl.load(coefs + COLUMNS.TensorCoef.INV_SQRT_BC2).to(STATE_DTYPE)
        e_to_y = tl.load(coefs + COLUMNS.TensorCoef.E_TO_Y).to(STATE_DTYPE)
        grad_share = tl.load(coefs + COLUMNS.TensorCoef.GRAD_SHARE).to(STATE_DTYPE)

        key_a, key_b = slot, slot
        if HALF or QUARTER:
            key_a, key_b = sixteen_bits.noise_key(settings_ptr, tensors_ptr, slot, COLUMNS)

        # two sets of pointers: about the first one the compiler knows the alignment
        y_vec = tl.multiple_of(y_address.to(tl.pointer_type(Y_DTYPE)), Y_ALIGNMENT)
        m_vec = tl.multiple_of(m_address.to(tl.pointer_type(M_DTYPE)), M_ALIGNMENT)
        v_vec = tl.multiple_of(v_address.to(tl.pointer_type(M_DTYPE)), M_ALIGNMENT)
        e_vec = tl.multiple_of(e_address.to(tl.pointer_type(E_DTYPE)), E_ALIGNMENT)
        g_vec = tl.multiple_of(g_address.to(tl.pointer_type(GRAD_DTYPE)), GRAD_ALIGNMENT)
        y_ptr = y_address.to(tl.pointer_type(Y_DTYPE))
        m_ptr = m_address.to(tl.pointer_type(M_DTYPE))
        v_ptr = v_address.to(tl.pointer_type(M_DTYPE))
        e_ptr = e_address.to(tl.pointer_type(E_DTYPE))
        g_ptr = g_address.to(tl.pointer_type(GRAD_DTYPE))
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
        length = chunk_length(tensor, start, numel, COLUMNS, CHUNK_SIZE)
        whole = tl.where(aligned, length // BLOCK_SIZE * BLOCK_SIZE, 0)
        if QUARTER:
            exponents_address = tl.load(tensor + COLUMNS.Row.EXPONENTS) + start // 32
            exponents_ptr = exponents_address.to(tl.pointer_type(tl.uint8))
            rows = tl.expand_dims(tl.arange(0, BLOCK_SIZE // 32), 1)
            shape: tl.constexpr = (BLOCK_SIZE // 32, 32)
            weight, gradient, update, dot = zeros(shape, STATE_DTYPE)
            for offset in range(0, whole, BLOCK_SIZE):
                old_y, y, g = update_quarter_block(
                    y_vec, param_vec, m_vec, v_vec, exponents_ptr, e_vec, g_vec, offset // 32 + rows, None,
                    beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y,
                    step_size, inv_sqrt_bc2, e_to_y, key_a, key_b, start, tensor, numel,
                    COLUMNS, PARAM_DTYPE, HAS_EXP_AVG, HAS_EXP_AVG_SQ, HAS_DISPLACEMENT,
                )  # fmt: skip
                if drift_ptr is not None:
                    weight, gradient, update, dot = add_drift(
                        weight, gradient, update, dot, old_y, y, g, None
                    )
            # half blocks, as below
            tail_rows = tl.expand_dims(tl.arange(0, BLOCK_SIZE // 64), 1)
            tail_shape: tl.constexpr = (BLOCK_SIZE // 64, 32)
            weights, gradients, updates, dots = zeros(tail_shape, STATE_DTYPE)
            for offset in range(whole, length, BLOCK_SIZE // 2):
                tail = offset // 32 + tail_rows
                old_y, y, g = update_quarter_block(
                    y_ptr, param_ptr, m_ptr, v_ptr, exponents_ptr, e_ptr, g_ptr, tail, tail < length // 32,
                    beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y,
                    step_size, inv_sqrt_bc2, e_to_y, key_a, key_b, start, tensor, numel,
                    COLUMNS, PARAM_DTYPE, HAS_EXP_AVG, HAS_EXP_AVG_SQ, HAS_DISPLACEMENT,
                )  # fmt: skip
                if drift_ptr is not None:
                    weights, gradients, updates, dots = add_drift(
                        weights, gradients, updates, dots, old_y, y, g, tail < length // 32
                    )
        else:
            lanes = tl.arange(0, BLOCK_SIZE)
            weight, gradient, update, dot = zeros((BLOCK_SIZE,), STATE_DTYPE)
            for offset in range(0, whole, BLOCK_SIZE):
                old_y, y, g = update_block(
                    y_vec, param_vec, m_vec, v_vec, e_vec, g_vec, offset + lanes, None,
                    beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y, m_to_u, grad_to_u,
                    step_size, inv_sqrt_bc2, e_to_y, grad_share, key_a, key_b, start, tensor, numel,
                    COLUMNS, PARAM_DTYPE, STATE_DTYPE, HAS_EXP_AVG, HAS_EXP_AVG_SQ, HAS_DISPLACEMENT,
                    HALF,
                )  # fmt: skip
                if drift_ptr is not None:
                    weight, gradient, update, dot = add_drift(
                        weight, gradient, update, dot, old_y, y, g, None
                    )
            # half blocks: what two loops over blocks of one shape have in common the compiler merges, and
            # lays out for vectors, so that the second would load with gaps and exchange what it stores
            # between threads, through shared memory
            TAIL_SIZE: tl.constexpr = BLOCK_SIZE // 2
            tail_lanes = tl.arange(0, TAIL_SIZE)
            weights, gradients, updates, dots = zeros((TAIL_SIZE,), STATE_DTYPE)
            for offset in range(whole, length, TAIL_SIZE):
                tail = offset + tail_lanes
                old_y, y, g = update_block(
                    y_ptr, param_ptr, m_ptr, v_ptr, e_ptr, g_ptr, tail, tail < length,
                    beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y, m_to_u, grad_to_u,
                    step_size, inv_sqrt_bc2, e_to_y, grad_share, key_a, key_b, start, tensor, numel,
                    COLUMNS, PARAM_DTYPE, STATE_DTYPE, HAS_EXP_AVG, HAS_EXP_AVG_SQ, HAS_DISPLACEMENT,
                    HALF,
                )  # fmt: skip
                if drift_ptr is not None:
                    weights, gradients, updates, dots = add_drift(
                        weights, gradients, updates, dots, old_y, y, g, tail < length
                    )
        if drift_ptr is not None:
            slot = drift_ptr + (first_chunk + tl.program_id(0)).to(tl.int64) * COLUMNS.Drift.WIDTH
            tl.store(slot + COLUMNS.Drift.WEIGHT_SQ, total(weight, weights))
            tl.store(slot + COLUMNS.Drift.GRAD_SQ, total(gradient, gradients))
            tl.store(slot + COLUMNS.Drift.UPDATE_SQ, total(update, updates))
            tl.store(slot + COLUMNS.Drift.WEIGHT_DOT_UPDATE, total(dot, dots))
        if CHUNK_SIZE == 0:
            tl.debug_barrier()  # what other threads of this program have written is there
            project_row(
                y_ptr, param_ptr, e_ptr, start, length, group, groups_ptr, hyper_ptr, group_coefs_ptr,
                key_a, key_b, tensor, numel,
                COLUMNS, PARAM_DTYPE, STATE_DTYPE, HAS_DISPLACEMENT, HALF, QUARTER, BLOCK_SIZE,
            )  # fmt: skip
