"""What the update pass does to the elements of a block, in each ``layout.Format``."""

import triton
import triton.language as tl

from sfplus_kernels.backends.triton import eight_bits, sixteen_bits
from sfplus_kernels.backends.triton.memory import round_to, y_or_written


@triton.jit
def _update_element(
    g,
    m,
    v,
    y,
    e,
    beta1,
    grad_to_m,
    beta2,
    grad_to_v,
    eps,
    omega,
    e_kept,
    delta_to_y,
    m_to_u,
    grad_to_u,
    step_size,
    inv_sqrt_bc2,
    e_to_y,
    grad_share,
    STATE_DTYPE: tl.constexpr,
    HAS_EXP_AVG: tl.constexpr,
    HAS_EXP_AVG_SQ: tl.constexpr,
    HAS_DISPLACEMENT: tl.constexpr,
):
    """m, v, y and e after the step, of those before it; of one that there is not anything."""
    if HAS_EXP_AVG and not HAS_EXP_AVG_SQ:  # SGD's momentum: the decay is part of the gradient
        g = grad_to_m * g + omega * y
        m = beta1 * m + grad_share * g
        delta = step_size * (m_to_u * m + grad_to_u * g)
    else:
        # moments
        old_m = m
        m = grad_to_m * g
        if HAS_EXP_AVG:
            m = beta1 * old_m + m
        # delta = gamma u + omega y, with u = m_hat / (sqrt(v_hat) + eps), or the gradient
        delta = step_size * m
        if HAS_EXP_AVG_SQ:
            v = beta2 * v + grad_to_v * g * g
            # correctly rounded as they are in fp64; in fp32 they are approximate
            if tl.float64 == STATE_DTYPE:
                delta = delta / (tl.sqrt(v) * inv_sqrt_bc2 + eps)
            else:
                delta = tl.div_rn(delta, tl.sqrt_rn(v) * inv_sqrt_bc2 + eps)
        delta = delta + omega * y
    if HAS_DISPLACEMENT:
        # one increment of y, its two parts summed first
        y = y + (e_to_y * e + delta_to_y * delta)
        # z moves by -delta, then x follows it by c_k
        e = e_kept * (e - delta)
    else:  # nothing is averaged
        y = y + delta_to_y * delta
    return m, v, y, e


@triton.jit
def update_block(
    y_ptr,
    param_ptr,
    m_ptr,
    v_ptr,
    e_ptr,
    g_ptr,
    offsets,
    mask,
    beta1,
    grad_to_m,
    beta2,
    grad_to_v,
    eps,
    omega,
    e_kept,
    delta_to_y,
    m_to_u,
    grad_to_u,
    step_size,
    inv_sqrt_bc2,
    e_to_y,
    grad_share,
    key_a,
    key_b,
    start,
    tensor,
    numel,
    COLUMNS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    HAS_EXP_AVG: tl.constexpr,
    HAS_EXP_AVG_SQ: tl.constexpr,
    HAS_DISPLACEMENT: tl.constexpr,
    HALF: tl.constexpr,
):
    """Elements ``offsets`` of one chunk. ``mask`` is None where all of them exist.

    Returns old y, y and g, of elements that there are.
    """
    g = tl.load(g_ptr + offsets, mask=mask).to(STATE_DTYPE)
    m, v, e = g, g, g
    if HAS_EXP_AVG:
        m = tl.load(m_ptr + offsets, mask=mask).to(STATE_DTYPE)
    if HAS_EXP_AVG_SQ:
        v = tl.load(v_ptr + offsets, mask=mask).to(STATE_DTYPE)
    if HAS_DISPLACEMENT:
        e = tl.load(e_ptr + offsets, mask=mask).to(STATE_DTYPE)
    y = tl.load(y_ptr + offsets, mask=mask)
    if PARAM_DTYPE != STATE_DTYPE:
        param = tl.load(param_ptr + offsets, mask=mask)
        y = sixteen_bits.join(param, y) if HALF else y_or_written(y, param)
    old_y, old_g = y, g

    m, v, y, e = _update_element(
        g, m, v, y, e, beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y, m_to_u,
        grad_to_u, step_size, inv_sqrt_bc2, e_to_y, grad_share, STATE_DTYPE, HAS_EXP_AVG, HAS_EXP_AVG_SQ,
        HAS_DISPLACEMENT,
    )  # fmt: skip

    if HALF:
        m = round_to(m, tl.bfloat16)
        if HAS_EXP_AVG_SQ or HAS_DISPLACEMENT:
            elements = start + offsets
            words = sixteen_bits.random_words(key_a, key_b, elements, tensor, numel, COLUMNS)
            if HAS_EXP_AVG_SQ:
                v = sixteen_bits.exp_avg_sq(v, words)
            if HAS_DISPLACEMENT:
                e = sixteen_bits.displacement(e, words)
    if HAS_EXP_AVG:
        tl.store(m_ptr + offsets, m, mask=mask)
    if HAS_EXP_AVG_SQ:
        tl.store(v_ptr + offsets, v, mask=mask)
    if HAS_DISPLACEMENT:
        tl.store(e_ptr + offsets, e, mask=mask)
    if PARAM_DTYPE != STATE_DTYPE:
        if HALF:
            param, lower = sixteen_bits.split(y)
            tl.store(y_ptr + offsets, lower, mask=mask)
        else:
            param = round_to(y, PARAM_DTYPE)
            tl.store(y_ptr + offsets, y, mask=mask)
        tl.store(param_ptr + offsets, param, mask=mask)
    else:
        tl.store(y_ptr + offsets, y, mask=mask)
    return old_y, y, old_g


@triton.jit
def update_quarter_block(
    y_ptr,
    param_ptr,
    m_ptr,
    v_ptr,
    exponents_ptr,
    e_ptr,
    g_ptr,
    rows,
    mask,
    beta1,
    grad_to_m,
    beta2,
    grad_to_v,
    eps,
    omega,
    e_kept,
    delta_to_y,
    step_size,
    inv_sqrt_bc2,
    e_to_y,
    key_a,
    key_b,
    start,
    tensor,
    numel,
    COLUMNS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    HAS_EXP_AVG: tl.constexpr,
    HAS_EXP_AVG_SQ: tl.constexpr,
    HAS_DISPLACEMENT: tl.constexpr,
):
    """The same in ``Format.QUARTER``: ``rows`` of 32 elements, a column of their numbers."""
    offsets = rows * 32 + tl.expand_dims(tl.arange(0, 32), 0)
    g = tl.load(g_ptr + offsets, mask=mask).to(tl.float32)
    m, v, e = g, g, g
    if HAS_EXP_AVG_SQ:
        lowest = tl.load(exponents_ptr + rows, mask=mask).to(tl.uint32) << 3
        ranks = eight_bits.ranks_of(tl.load(v_ptr + offsets, mask=mask), lowest)
        v = eight_bits.value_of(ranks)
        if HAS_EXP_AVG:
            m = eight_bits.exp_avg_of(tl.load(m_ptr + offsets, mask=mask), ranks)
    if HAS_DISPLACEMENT:
        e = tl.load(e_ptr + offsets, mask=mask).to(tl.float32)
    y = tl.load(y_ptr + offsets, mask=mask)
    if tl.float32 != PARAM_DTYPE:
        y = eight_bits.join(tl.load(param_ptr + offsets, mask=mask), y)
    old_y, old_g = y, g
    m, v, y, e = _update_element(
        g, m, v, y, e, beta1, grad_to_m, beta2, grad_to_v, eps, omega, e_kept, delta_to_y, 1.0, 0.0,
        step_size, inv_sqrt_bc2, e_to_y, 1.0, tl.float32, HAS_EXP_AVG, HAS_EXP_AVG_SQ,
        HAS_DISPLACEMENT,
    )  # fmt: skip
    words = sixteen_bits.random_words(key_a, key_b, start + offsets, tensor, numel, COLUMNS)
    if HAS_EXP_AVG_SQ:
        ranks, lowest = eight_bits.exp_avg_sq(v, words)
        codes = tl.where(ranks == 0, 0, ranks - lowest).to(tl.uint8)
        tl.store(v_ptr + offsets, codes, mask=mask)
        tl.store(exponents_ptr + rows, (lowest >> 3).to(tl.uint8), mask=mask)
        if HAS_EXP_AVG:
            tl.store(m_ptr + offsets, eight_bits.exp_avg(m, ranks, words), mask=mask)
    if HAS_DISPLACEMENT:
        tl.store(e_ptr + offsets, eight_bits.displacement(e, words), mask=mask)
    new_y = y
    if tl.float32 != PARAM_DTYPE:
        param, y = eight_bits.split(y, words & 0xFF)
        tl.store(param_ptr + offsets, param, mask=mask)
        new_y = eight_bits.join(param, y)
    tl.store(y_ptr + offsets, y, mask=mask)
    return old_y, new_y, old_g


@triton.jit
def zeros(SHAPE: tl.constexpr, DTYPE: tl.constexpr):
    """For the four running sums of ``add_drift``."""
    zero = tl.full(SHAPE, 0, DTYPE)
    return zero, zero, zero, zero


@triton.jit
def add_drift(weight, gradient, update, dot, old_y, y, g, mask):
    """The sums of ``layout.Drift``, a running one for each place in a block."""
    moved = y - old_y
    if mask is not None:
        y, g, moved = tl.where(mask, y, 0), tl.where(mask, g, 0), tl.where(mask, moved, 0)
    return weight + y * y, gradient + g * g, update + moved * moved, dot + y * moved


@triton.jit
def total(of_blocks, of_tails):
    """Of all the running sums, in float64."""
    return tl.sum(of_blocks.to(tl.float64)) + tl.sum(of_tails.to(tl.float64))
