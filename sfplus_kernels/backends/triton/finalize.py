"""The step's scalars: sums, loss and run state -> coefficients. All of it in fp64.

In which kernel that is done: see finish.py.
"""

import triton
import triton.language as tl


@triton.jit
def _power(base, exponent):
    """base^exponent for base >= 0; pow(0, 0) = 1."""
    positive = base > 0
    power = tl.exp(exponent * tl.log(tl.where(positive, base, 1.0)))
    at_zero = tl.where(exponent > 0, 0.0, tl.where(exponent < 0, float("inf"), 1.0))
    return tl.where(positive, power, at_zero)


@triton.jit
def _momentum(sf_beta1, settings_ptr, k, COLUMNS: tl.constexpr):
    """beta_k: annealed so that ln(1 - beta) is linear in the step; else exactly sf_beta1."""
    sf_beta1_max = tl.load(settings_ptr + COLUMNS.Setting.SF_BETA1_MAX)
    anneal_steps = tl.load(settings_ptr + COLUMNS.Setting.SF_BETA1_ANNEAL_STEPS)
    annealing = anneal_steps > 0
    s = tl.minimum(k / tl.where(annealing, anneal_steps, 1.0), 1.0)
    start = tl.log(tl.where(annealing, 1 - sf_beta1, 1.0))
    end = tl.log(tl.where(annealing, 1 - sf_beta1_max, 1.0))
    return tl.where(annealing, 1 - tl.exp((1 - s) * start + s * end), sf_beta1)


@triton.jit
def _factor_of_rule(beta2, step, silent, rule, COLUMNS: tl.constexpr):
    """The factor on gamma beside the warmup, and whether u is divided by sqrt(v)."""
    beta2_t = _power(beta2, step)
    # RAdam: the length of the moving average, and its rectification
    rho_inf = 2 / (1 - beta2) - 1
    rho_t = rho_inf - 2 * step * beta2_t / (1 - beta2_t)
    rectified = rule == COLUMNS.Rule.RECTIFIED
    # by way of where: the interpreter cannot combine a scalar's truth with a block's
    long_enough = tl.where(rectified, rho_t, 0.0) > 4
    adaptive = tl.where(rectified, rho_t, 5.0) > 4
    above = (rho_t - 4) * (rho_t - 2) * rho_inf
    below = tl.where(long_enough, (rho_inf - 4) * (rho_inf - 2) * rho_t, 1.0)
    rect = tl.where(long_enough, tl.sqrt(tl.where(long_enough, above / below, 1.0)), 1 - silent)
    paper = tl.where(rule == COLUMNS.Rule.PAPER, tl.sqrt(1 - beta2_t), 1.0)
    return tl.where(rectified, rect, paper), adaptive


@triton.jit
def _group_step(hyper, groups, rule, polyak_lr, mask, COLUMNS: tl.constexpr):
    """gamma, lr_max, weight_sum, c_k and omega of the step for rows of groups, and whether u is divided
    by sqrt(v); writes nothing."""
    lr = tl.load(hyper + COLUMNS.Hyper.LR, mask, 0.0)
    eps = tl.load(hyper + COLUMNS.Hyper.EPS, mask, 0.0)
    weight_decay = tl.load(hyper + COLUMNS.Hyper.WEIGHT_DECAY, mask, 0.0)
    r = tl.load(hyper + COLUMNS.Hyper.R, mask, 0.0)
    c_warmup = tl.load(hyper + COLUMNS.Hyper.C_WARMUP, mask, 0.0)
    warmup_steps = tl.load(hyper + COLUMNS.Hyper.WARMUP_STEPS, mask, 0.0)
    weight_lr_power = tl.load(hyper + COLUMNS.Hyper.WEIGHT_LR_POWER, mask, 0.0)
    beta2 = tl.load(hyper + COLUMNS.Hyper.BETA2, mask, 0.0)
    silent = tl.load(hyper + COLUMNS.Hyper.SILENT_SGD_PHASE, mask, 0.0)
    max_lr = tl.load(hyper + COLUMNS.Hyper.MAX_LR, mask, 0.0)
    decay_peak = tl.load(hyper + COLUMNS.Hyper.DECAY_PEAK, mask, 0.0)
    c_factor = tl.load(hyper + COLUMNS.Hyper.C_FACTOR, mask, 0.0)
    beta1 = tl.load(hyper + COLUMNS.Hyper.BETA1, mask, 0.0)
    polyak = rule == COLUMNS.Rule.POLYAK
    k = tl.load(groups + COLUMNS.Group.K, mask, 0.0)
    lr_max = tl.load(groups + COLUMNS.Group.LR_MAX, mask, 0.0)
    weight_sum = tl.load(groups + COLUMNS.Group.WEIGHT_SUM, mask, 0.0)

    # gamma = warmup min(max(lr, eps) polyak, max_lr), or lr warmup; by comparisons: a NaN stays one
    warming = (warmup_steps > 0) & (k + 1 < warmup_steps)
    warmup = tl.where(warming, (k + 1) / tl.where(warming, warmup_steps, 1.0), 1.0)
    floor = tl.where(polyak, eps, 0.0)
    factor, adaptive = _factor_of_rule(beta2, k + 1, silent, rule, COLUMNS)
    gamma = tl.where(lr < floor, floor, lr) * warmup * polyak_lr * factor
    cap = max_lr * warmup
    gamma = tl.where((cap > 0) & (gamma > cap), cap, gamma)
    lr_max = tl.where(gamma > lr_max, gamma, lr_max)
    # c_k = min(w / weight_sum c_factor, 1), w = (k+1)^r lr_max^p; 1 during c_warmup
    weight = _power(k + 1, r) * _power(lr_max, weight_lr_power)
    weight = tl.where(k < c_warmup, 0.0, weight)
    weight_sum = weight_sum + weight
    c = tl.where(weight_sum > 0, weight / tl.where(weight_sum > 0, weight_sum, 1.0), 0.0)
    c = tl.where(c_factor > 0, tl.minimum(c * c_factor, 1.0), c)
    c = tl.where(k < c_warmup, 1.0, c)
    peak = tl.where(decay_peak > 0, decay_peak, lr_max)
    share = tl.where(peak > 0, gamma / tl.where(peak > 0, peak, 1.0), 0.0)
    decay = tl.where(decay_peak != 0, share, 1.0) * weight_decay
    # of SGD's momentum the decay is part of the gradient, which gamma is multiplied with later
    in_gradient = tl.where(rule == COLUMNS.Rule.MOMENTUM, beta1, 0.0) > 0
    omega = tl.where(polyak, gamma * gamma, tl.where(in_gradient, 1.0, gamma)) * decay
    return k, gamma, lr_max, weight_sum, c, omega, adaptive


@triton.jit
def finish_groups(
    partials_ptr,
    loss_ptr,
    globals_ptr,
    groups_ptr,
    hyper_ptr,
    settings_ptr,
    group_coefs_ptr,
    n_partials,
    n_groups,
    COLUMNS: tl.constexpr,
    MAX_COEFFICIENT: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """Global figures and everything per group, or the mark of a skipped step. Returns whether it is skipped.

    What a thread reads may be what another one writes: all that is read from the run state is read
    before the barrier that precedes its writing.
    """
    sum_l1 = tl.full((), 0, tl.float64)
    sum_dot = tl.full((), 0, tl.float64)
    sum_squares = tl.full((), 0, tl.float64)
    if partials_ptr is not None:  # in a fixed order, past the multiprocessor's own cache
        lanes = tl.arange(0, SUM_BLOCK)
        l1 = tl.full((SUM_BLOCK,), 0, tl.float64)
        dot = tl.full((SUM_BLOCK,), 0, tl.float64)
        squares = tl.full((SUM_BLOCK,), 0, tl.float64)
        for first in range(0, n_partials, SUM_BLOCK):
            mask = first + lanes < n_partials
            slots = partials_ptr + (first + lanes) * COLUMNS.Sum.WIDTH
            l1 += tl.load(slots + COLUMNS.Sum.GRAD_L1, mask, 0.0, cache_modifier=".cg")
            dot += tl.load(slots + COLUMNS.Sum.GRAD_DOT_E, mask, 0.0, cache_modifier=".cg")
            squares += tl.load(slots + COLUMNS.Sum.GRAD_SQ, mask, 0.0, cache_modifier=".cg")
        sum_l1 = tl.sum(l1)
        sum_dot = tl.sum(dot)
        sum_squares = tl.sum(squares)

    rule = tl.load(settings_ptr + COLUMNS.Setting.RULE)
    polyak_beta = tl.load(settings_ptr + COLUMNS.Setting.POLYAK_BETA)
    f_star = tl.load(settings_ptr + COLUMNS.Setting.F_STAR)
    sign = tl.load(settings_ptr + COLUMNS.Setting.GRAD_SIGN)
    if loss_ptr is None:
        f = tl.load(globals_ptr + COLUMNS.Global.FUNCTION_VALUE)
    else:  # of any dtype; by way of fp32, because the interpreter knows no other way from bf16
        f = tl.load(loss_ptr)
        f = f if f.dtype == tl.float64 else f.to(tl.float32).to(tl.float64)
        tl.store(globals_ptr + COLUMNS.Global.FUNCTION_VALUE, f)
    ema = tl.load(globals_ptr + COLUMNS.Global.GRAD_L1_EMA)
    scale = tl.load(globals_ptr + COLUMNS.Global.GRAD_SCALE)
    clip_coef = tl.load(globals_ptr + COLUMNS.Global.CLIP_COEF)
    found_inf = tl.load(globals_ptr + COLUMNS.Global.FOUND_INF)
    max_norm = tl.load(settings_ptr + COLUMNS.Setting.MAX_GRAD_NORM)
    skipped_steps = tl.load(globals_ptr + COLUMNS.Global.SKIPPED_STEPS)
    skipped_in_a_row = tl.load(globals_ptr + COLUMNS.Global.CONSECUTIVE_SKIPPED_STEPS)
    k = tl.load(groups_ptr + COLUMNS.Group.K)

    # sums of the loss's own gradients; those in memory may be scaled and clipped
    inverse = 1 / (scale * clip_coef)
    sum_l1 = sum_l1 * inverse
    sum_dot = sum_dot * inverse
    sum_squares = sum_squares * inverse * inverse
    clip = tl.where(max_norm > 0, max_norm / (tl.sqrt(sum_squares) + 1e-6), 1.0)
    factor = tl.where(clip < 1, clip, 1.0) / scale

    # beta_k and k are those of the first group
    beta = _momentum(tl.load(hyper_ptr + COLUMNS.Hyper.SF_BETA1), settings_ptr, k, COLUMNS)

    # Polyak step; 0 when every gradient is zero. 1.2533... is sqrt(pi / 2)
    ip_term = sign * beta * sum_dot
    ema = polyak_beta * ema + (1 - polyak_beta) * 1.2533141373155003 * sum_l1
    denominator = ema / (1 - _power(polyak_beta, k + 1))
    numerator = sign * (f - f_star) + ip_term
    numerator = tl.where(numerator < 0, 0.0, numerator)
    moving = denominator > 0
    polyak_lr = tl.where(moving, numerator / tl.where(moving, denominator, 1.0), 0.0)
    polyak_lr = tl.where(rule == COLUMNS.Rule.POLYAK, polyak_lr, 1.0)
    # figures that nobody reads here
    tl.store(globals_ptr + COLUMNS.Global.GRAD_L1, sum_l1)
    tl.store(globals_ptr + COLUMNS.Global.GRAD_NORM, tl.sqrt(sum_squares))
    tl.store(globals_ptr + COLUMNS.Global.IP_TERM, ip_term)

    # a step that is not finite, or whose coefficients would overflow, is skipped
    infinity = float("inf")
    fine = (tl.abs(f) < infinity) & (sum_l1 < infinity)
    fine = fine & (tl.abs(sum_dot) < infinity) & (sum_squares < infinity) & (found_inf == 0)
    group_lanes = tl.arange(0, LANES)
    n_bad = tl.full((LANES,), 0, tl.int32)
    for first in range(0, n_groups, LANES):
        group = first + group_lanes
        mask = group < n_groups
        hyper = hyper_ptr + group * COLUMNS.Hyper.WIDTH
        groups = groups_ptr + group * COLUMNS.Group.WIDTH
        _, gamma, _, weight_sum, _, omega, _ = _group_step(
            hyper, groups, rule, polyak_lr, mask, COLUMNS
        )
        good = (gamma <= MAX_COEFFICIENT) & (omega <= MAX_COEFFICIENT) & (weight_sum < infinity)
        n_bad += (mask & (good == 0)).to(tl.int32)
    skip = (fine == 0) | (tl.sum(n_bad) > 0)

    tl.debug_barrier()
    if skip:
        tl.store(globals_ptr + COLUMNS.Global.SKIP, 1.0)
        tl.store(globals_ptr + COLUMNS.Global.SKIPPED_STEPS, skipped_steps + 1)
        tl.store(globals_ptr + COLUMNS.Global.CONSECUTIVE_SKIPPED_STEPS, skipped_in_a_row + 1)
    else:
        tl.store(globals_ptr + COLUMNS.Global.SKIP, 0.0)
        tl.store(globals_ptr + COLUMNS.Global.CONSECUTIVE_SKIPPED_STEPS, 0.0)
        tl.store(globals_ptr + COLUMNS.Global.GRAD_L1_EMA, ema)
        tl.store(globals_ptr + COLUMNS.Global.POLYAK_LR, polyak_lr)
        tl.store(globals_ptr + COLUMNS.Global.SF_BETA1, beta)
        for first in range(0, n_groups, LANES):
            group = first + group_lanes
            mask = group < n_groups
            hyper = hyper_ptr + group * COLUMNS.Hyper.WIDTH
            groups = groups_ptr + group * COLUMNS.Group.WIDTH
            group_k, gamma, lr_max, weight_sum, c, omega, adaptive = _group_step(
                hyper, groups, rule, polyak_lr, mask, COLUMNS
            )
            sf_beta1 = tl.load(hyper + COLUMNS.Hyper.SF_BETA1, mask, 0.0)
            group_beta = _momentum(sf_beta1, settings_ptr, k, COLUMNS)
            tl.debug_barrier()
            tl.store(groups + COLUMNS.Group.K, group_k + 1, mask)
            tl.store(groups + COLUMNS.Group.LR_MAX, lr_max, mask)
            tl.store(groups + COLUMNS.Group.WEIGHT_SUM, weight_sum, mask)
            tl.store(groups + COLUMNS.Group.CKP1, c, mask)
            tl.store(groups + COLUMNS.Group.SCHEDULED_LR, gamma, mask)
            tl.store(groups + COLUMNS.Group.Y_BETA, group_beta, mask)
            tl.store(groups + COLUMNS.Group.ADAPTIVE, adaptive.to(tl.float64), mask)

            beta1 = tl.load(hyper + COLUMNS.Hyper.BETA1, mask, 0.0)
            beta2 = tl.load(hyper + COLUMNS.Hyper.BETA2, mask, 0.0)
            eps = tl.load(hyper + COLUMNS.Hyper.EPS, mask, 0.0)
            eps = tl.where(adaptive, eps, 1.0)
            coefs = group_coefs_ptr + group * COLUMNS.GroupCoef.WIDTH
            tl.store(coefs + COLUMNS.GroupCoef.BETA1, beta1, mask)
            ascends = tl.load(hyper + COLUMNS.Hyper.ASCENDS, mask, 0.0)
            direction = tl.where(ascends != 0, -sign, sign)
            averaged = tl.where(rule == COLUMNS.Rule.MOMENTUM, 0.0, beta1)
            tl.store(coefs + COLUMNS.GroupCoef.GRAD_TO_M, direction * (1 - averaged) * factor, mask)
            tl.store(coefs + COLUMNS.GroupCoef.BETA2, beta2, mask)
            tl.store(coefs + COLUMNS.GroupCoef.GRAD_TO_V, (1 - beta2) * factor * factor, mask)
            tl.store(coefs + COLUMNS.GroupCoef.EPS, eps, mask)
            tl.store(coefs + COLUMNS.GroupCoef.OMEGA, omega, mask)
            tl.store(coefs + COLUMNS.GroupCoef.E_KEPT, 1 - c, mask)
            tl.store(coefs + COLUMNS.GroupCoef.DELTA_TO_Y, -(1 - group_beta * (1 - c)), mask)
            nesterov = tl.load(hyper + COLUMNS.Hyper.NESTEROV, mask, 0.0) != 0
            tl.store(coefs + COLUMNS.GroupCoef.M_TO_U, tl.where(nesterov, beta1, 1.0), mask)
            tl.store(coefs + COLUMNS.GroupCoef.GRAD_TO_U, tl.where(nesterov, 1.0, 0.0), mask)
    return skip


@triton.jit
def finish_tensors(
    first,
    rows_ptr,
    groups_ptr,
    hyper_ptr,
    settings_ptr,
    tensors_ptr,
    tensor_coefs_ptr,
    n_rows,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Everything per tensor, after all that is per group: a lane for each row of the address table, from the
    ``first`` on."""
    lanes = first + tl.arange(0, LANES)
    mask = lanes < n_rows
    rows = rows_ptr + lanes * COLUMNS.Row.WIDTH
    group = tl.load(rows + COLUMNS.Row.GROUP, mask, 0)
    slot = tl.load(rows + COLUMNS.Row.SLOT, mask, 0)
    hyper = hyper_ptr + group * COLUMNS.Hyper.WIDTH
    groups = groups_ptr + group * COLUMNS.Group.WIDTH
    tensors = tensors_ptr + slot * COLUMNS.Scalar.WIDTH
    coefs = tensor_coefs_ptr + slot * COLUMNS.TensorCoef.WIDTH
    beta = tl.load(groups + COLUMNS.Group.Y_BETA, mask, 0.0)
    beta1 = tl.load(hyper + COLUMNS.Hyper.BETA1, mask, 0.0)
    beta2 = tl.load(hyper + COLUMNS.Hyper.BETA2, mask, 0.0)
    gamma = tl.load(groups + COLUMNS.Group.SCHEDULED_LR, mask, 0.0)
    c = tl.load(groups + COLUMNS.Group.CKP1, mask, 0.0)
    adaptive = tl.load(groups + COLUMNS.Group.ADAPTIVE, mask, 0.0)
    rule = tl.load(settings_ptr + COLUMNS.Setting.RULE)
    step = tl.load(tensors + COLUMNS.Scalar.STEP, mask, 0.0) + 1
    b = tl.load(tensors + COLUMNS.Scalar.Y_BETA, mask, 0.0)

    # bias corrections with the tensor's own step count
    step_size = gamma / tl.where(rule == COLUMNS.Rule.MOMENTUM, 1.0, 1 - _power(beta1, step))
    bc2 = tl.where(rule == COLUMNS.Rule.PAPER, 1.0, 1 - _power(beta2, step))
    inv_sqrt_bc2 = tl.where(adaptive > 0, 1 / tl.sqrt(bc2), 0.0)
    # y was last written with b, and is now written with beta_k
    e_to_y = b - beta * (1 - c)
    dampening = tl.load(hyper + COLUMNS.Hyper.DAMPENING, mask, 0.0)

    tl.debug_barrier()
    tl.store(coefs + COLUMNS.TensorCoef.STEP_SIZE, step_size, mask)
    tl.store(coefs + COLUMNS.TensorCoef.INV_SQRT_BC2, inv_sqrt_bc2, mask)
    tl.store(coefs + COLUMNS.TensorCoef.E_TO_Y, e_to_y, mask)
    tl.store(coefs + COLUMNS.TensorCoef.GRAD_SHARE, tl.where(step > 1, 1 - dampening, 1.0), mask)
    tl.store(tensors + COLUMNS.Scalar.STEP, step, mask)
    tl.store(tensors + COLUMNS.Scalar.Y_BETA, beta, mask)
