"""Where each number of the run lives: the columns of the fp64 buffers and of the address table.

Python, Triton and C++ index the same memory, so the order below is the one definition; the compiled
extension exports its own copy and a test compares the two.
"""

from enum import IntEnum

VIRTUAL_BLOCKS = 2048
"""Slots of partial sums per launch. Fixed, so that neither the number of multiprocessors nor the
number of threads changes the order in which a sum is formed."""


class HostRow(IntEnum):
    """Columns of a row that the host writes."""

    @classmethod
    def row(cls, **values: float) -> tuple[float, ...]:
        """A row of the buffer from its columns' names in lower case; a column that is not named is 0.

        Raises:
            KeyError: there is no such column.
        """
        row = [0.0] * len(cls)
        for name, value in values.items():
            row[cls[name.upper()]] = value
        return tuple(row)


class Rule(IntEnum):
    """Where gamma, the step size, comes from: the values of ``Setting.RULE``."""

    # ScheduleFree+: min(max(lr, eps) times a Polyak step, max_lr) under warmup; omega = gamma^2 weight_decay
    POLYAK = 0
    # AdamWScheduleFree, SGDScheduleFree, AdamW: lr under warmup; omega = gamma weight_decay, here and below
    GIVEN_LR = 1
    # AdamWScheduleFreePaper: also times sqrt(1 - beta2^(k + 1)); v is not bias corrected
    PAPER = 2
    # RAdamScheduleFree: lr times RAdam's rectification; without it (rho_t <= 4) SGD, or nothing
    RECTIFIED = 3
    # SGD as torch has it: lr, a momentum without bias correction, and decay that is part of the gradient
    MOMENTUM = 4


class Format(IntEnum):
    """How the state of a tensor is kept: see ``contract.formats``. All tensors of a launch have one."""

    FULL = 0  # in the type of the arithmetic
    HALF = 1  # in 16 bits a number, for float32 and bfloat16 parameters
    QUARTER = 2  # moments in 8 bits, and 24 bits of y of a bfloat16 parameter; e in 16


class Move(IntEnum):
    """What ``interpolate`` does to y (and the parameter that follows it) and e of a tensor.

    The parameter is y itself, or its rounding where there is a ``master_param``.
    """

    TO_X = 0  # parameter <- x = y - (1 - b) e; a master_param stays y
    TO_Y = 1  # parameter <- y, from x
    SHIFT = 2  # y <- y + E_TO_Y e: from one b to another
    EXPOSE_Z = 3  # y <- z - lr weight_decay y, e <- x: for the step of another optimizer on z
    ABSORB_Z = 4  # and back: (z, x) -> y, e, after x has followed z by c_k


class Hyper(HostRow):
    """Hyperparameters of one group: a row of ``RunState.hyper``, written by the host."""

    LR = 0
    SF_BETA1 = 1  # the Schedule-Free momentum beta, before annealing
    BETA1 = 2
    BETA2 = 3
    EPS = 4
    WEIGHT_DECAY = 5
    R = 6
    C_WARMUP = 7
    WARMUP_STEPS = 8
    WEIGHT_LR_POWER = 9
    SILENT_SGD_PHASE = 10  # 1 if gamma is 0 while RAdam is not rectified
    ASCENDS = 11  # 1 if this group goes the other way than GRAD_SIGN says
    MAX_LR = 12  # what a Polyak step's lr polyak_lr is cut down to; 0 is no cap
    DECAY_PEAK = 13  # weight_decay is multiplied by gamma over this; -1: over LR_MAX; 0: it is not
    NESTEROV = 14  # 1 if u is the gradient and BETA1 times its momentum, 0 if it is the momentum
    ROW_NORM = (
        15  # what the norm of each row of z is brought to after a step; 0: nothing is projected
    )
    C_FACTOR = 16  # c_k is multiplied by this and cut down to 1; 0: it is not
    DAMPENING = 17  # SGD's momentum takes 1 minus this of the gradient, all of the first one


class Setting(HostRow):
    """Hyperparameters that all groups share: ``RunState.settings``, written by the host."""

    RULE = 0
    SF_BETA1_MAX = 1
    SF_BETA1_ANNEAL_STEPS = 2
    POLYAK_BETA = 3
    F_STAR = 4
    GRAD_SIGN = 5  # -1 when the loss of a Polyak step is maximized, else 1
    MAX_GRAD_NORM = 6  # clip to this global L2 norm; 0 is off
    ROUNDING_SEED = 7  # of stochastic rounding, an integer below 2^32


class Global(IntEnum):
    """Run state and last-step figures without a group: ``RunState.globals``.

    Some are also the way in, written before ``finalize``: the loss to ``FUNCTION_VALUE``, and, where
    gradients are scaled or clipped by others, ``GRAD_SCALE``, ``CLIP_COEF`` and ``FOUND_INF``. The
    gradients in memory are GRAD_SCALE CLIP_COEF times those of the loss.
    """

    FUNCTION_VALUE = 0
    GRAD_L1 = 1
    GRAD_NORM = 2
    IP_TERM = 3
    GRAD_L1_EMA = 4
    POLYAK_LR = 5
    SF_BETA1 = 6  # beta_k of the first group
    SKIP = 7  # 1 when this step is skipped, else 0
    SKIPPED_STEPS = 8
    CONSECUTIVE_SKIPPED_STEPS = 9
    GRAD_SCALE = 10  # of a gradient scaler, else 1; taken out of moments and sums
    CLIP_COEF = 11  # by which gradients were clipped before, else 1; taken out of the sums only
    FOUND_INF = 12  # not 0: skip this step, whatever the sums are


class Group(IntEnum):
    """Run state of one group: a row of ``RunState.groups``."""

    K = 0
    LR_MAX = 1
    WEIGHT_SUM = 2
    CKP1 = 3
    SCHEDULED_LR = 4  # gamma
    Y_BETA = 5  # beta_k, with which this step writes y
    ADAPTIVE = 6  # 1 if u is divided by sqrt(v), 0 in the steps where RAdam is SGD


class Scalar(IntEnum):
    """Run scalars of one tensor: a row of ``RunState.tensors``."""

    STEP = 0
    Y_BETA = 1  # b


class GroupCoef(IntEnum):
    """What ``update`` needs per group: a row of ``RunState.group_coefs``, written by ``finalize``.

    m <- BETA1 m + GRAD_TO_M g                 v <- BETA2 v + GRAD_TO_V g^2
    delta = STEP_SIZE m / (sqrt(v) INV_SQRT_BC2 + EPS) + OMEGA y
    (no exp_avg: m = GRAD_TO_M g; no exp_avg_sq: delta = STEP_SIZE m + OMEGA y; where v is kept but
    not used, INV_SQRT_BC2 is 0 and EPS 1)
    y <- y + E_TO_Y e + DELTA_TO_Y delta       e <- E_KEPT (e - delta)
    (no displacement: nothing is averaged, y <- y + DELTA_TO_Y delta, and DELTA_TO_Y is -1)

    With exp_avg and no exp_avg_sq, which is SGD's momentum, the decay is part of the gradient:

    g <- GRAD_TO_M g + OMEGA y     m <- BETA1 m + GRAD_SHARE g
    delta = STEP_SIZE (M_TO_U m + GRAD_TO_U g)
    """

    BETA1 = 0
    GRAD_TO_M = 1  # (1 - beta1) factor, negative when maximizing; factor unscales and clips
    BETA2 = 2
    GRAD_TO_V = 3  # (1 - beta2) factor^2
    EPS = 4
    OMEGA = 5  # the decay of this step, at y
    E_KEPT = 6  # 1 - c_k
    DELTA_TO_Y = 7  # -(1 - beta_k (1 - c_k))
    M_TO_U = 8  # these two of SGD's momentum: 1 and 0, or beta1 and 1 as Nesterov has it
    GRAD_TO_U = 9


class TensorCoef(IntEnum):
    """What ``update`` needs per tensor: a row of ``RunState.tensor_coefs``."""

    STEP_SIZE = 0  # gamma / (1 - beta1^step); gamma in ``Rule.MOMENTUM``
    INV_SQRT_BC2 = 1  # 1 / sqrt(1 - beta2^step); 1 where v is not bias corrected
    E_TO_Y = 2  # b - beta_k (1 - c_k)
    GRAD_SHARE = 3  # of SGD's momentum: 1 - dampening; 1 in the first step


class Sum(IntEnum):
    """The three sums of the reduction pass: the columns of ``AddressTable.partials``."""

    GRAD_L1 = 0  # sum |g|
    GRAD_DOT_E = 1  # sum g e
    GRAD_SQ = 2  # sum g^2


class Drift(IntEnum):
    """What ``update`` sums up of a chunk where somebody monitors: the columns of ``AddressTable.drift``.

    Of y as it is stored after the step, the gradient as it is in memory, and the difference that the step
    made to y. Before a first step was taken they are NaN.
    """

    WEIGHT_SQ = 0  # sum y^2
    GRAD_SQ = 1  # sum g^2
    UPDATE_SQ = 2  # sum (y - old y)^2
    WEIGHT_DOT_UPDATE = 3  # sum y (y - old y), for the angle between y and old y


class Row(IntEnum):
    """One tensor in the address table (int64): addresses, size, and where its scalars are.

    ``Y`` is the address of y: of the parameter itself, or of its ``master_param``. ``PARAM`` is the
    address of a low-precision parameter that follows y, and 0 where the parameter is y itself. A moment
    that the algorithm does not keep has the address 0, and so has the displacement of one that does not
    average.

    Of a bfloat16 parameter in ``Format.HALF`` y is in two halves: ``Y`` is the address of the lower one,
    ``y_low``. The upper one is the parameter; while that holds x it is kept at ``Y_HIGH``, else 0.
    In ``Format.QUARTER`` the same with 8 bits, the moments are codes, and ``EXPONENTS`` is the address of the
    exponents of v, one for 32 elements, else 0; NUMEL and INDEX_RUN are multiples of 32 there.

    Element j of the memory is element INDEX_START + (j // INDEX_RUN) INDEX_STRIDE + j % INDEX_RUN (modulo
    2^32) of the whole tensor, of which this process may hold a part: its random numbers are of that index.
    Where INDEX_RUN is NUMEL the indices are one run.

    ``ROW_LENGTH`` is the number of elements of a row of a tensor whose rows are projected, else 0; then
    each of its chunks is a row.
    """

    Y = 0
    PARAM = 1
    EXP_AVG = 2
    EXP_AVG_SQ = 3
    DISPLACEMENT = 4
    NUMEL = 5
    GROUP = 6
    SLOT = 7  # row of RunState.tensors and RunState.tensor_coefs
    Y_HIGH = 8
    INDEX_START = 9
    INDEX_RUN = 10  # at least 1
    INDEX_STRIDE = 11
    EXPONENTS = 12
    ROW_LENGTH = 13


class Chunk(IntEnum):
    """One piece of work in the chunk table (int64): a row of the address table and an offset."""

    ROW = 0
    START = 1  # first element; the piece ends at START + chunk_size (or ROW_LENGTH) or at NUMEL
