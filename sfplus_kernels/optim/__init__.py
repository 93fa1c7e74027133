"""The optimizers: thin classes that validate, gather and call the functional form."""

from sfplus_kernels.core.closure_form import (
    AdamWScheduleFreeClosure,
    RAdamScheduleFreeClosure,
    SGDScheduleFreeClosure,
)
from sfplus_kernels.core.fused import ScheduleFreeOptimizer
from sfplus_kernels.core.losses import report_loss
from sfplus_kernels.core.shared_step import SharedStep
from sfplus_kernels.optim.adamc_schedule_free_plus import AdamCScheduleFreePlus
from sfplus_kernels.optim.adamw_schedule_free import AdamWScheduleFree
from sfplus_kernels.optim.adamw_schedule_free_paper import AdamWScheduleFreePaper
from sfplus_kernels.optim.radam_schedule_free import RAdamScheduleFree
from sfplus_kernels.optim.schedule_free_wrapper import ScheduleFreeWrapper
from sfplus_kernels.optim.sgd_schedule_free import SGDScheduleFree
from sfplus_kernels.state.tensors import Iterates

__all__ = [
    "AdamCScheduleFreePlus",
    "AdamWScheduleFree",
    "AdamWScheduleFreeClosure",
    "AdamWScheduleFreePaper",
    "Iterates",
    "RAdamScheduleFree",
    "RAdamScheduleFreeClosure",
    "SGDScheduleFree",
    "SGDScheduleFreeClosure",
    "ScheduleFreeOptimizer",
    "ScheduleFreeWrapper",
    "SharedStep",
    "report_loss",
]
