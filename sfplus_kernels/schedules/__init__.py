"""Learning-rate schedules: functions of the step, schedulers for torch's optimizers, and refinement.

For the optimizers that want a schedule, as AdamW and SGD do. Schedule-Free optimizers want none.
"""

from sfplus_kernels.schedules.functions import (
    cosine,
    inverse_sqrt,
    linear_decay,
    refined,
    warmup_stable_decay,
)
from sfplus_kernels.schedules.norms import read_norms
from sfplus_kernels.schedules.refinement import refine
from sfplus_kernels.schedules.schedulers import (
    CosineLR,
    InverseSqrtLR,
    LinearDecayLR,
    RefinedLR,
    WarmupStableDecayLR,
)

__all__ = [
    "CosineLR",
    "InverseSqrtLR",
    "LinearDecayLR",
    "RefinedLR",
    "WarmupStableDecayLR",
    "cosine",
    "inverse_sqrt",
    "linear_decay",
    "read_norms",
    "refine",
    "refined",
    "warmup_stable_decay",
]
