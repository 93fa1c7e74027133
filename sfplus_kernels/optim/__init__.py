"""The optimizers: thin classes that validate, gather and call the functional form."""

from sfplus_kernels.optim.adamc_schedule_free_plus import AdamCScheduleFreePlus
from sfplus_kernels.optim.adamw_schedule_free import AdamWScheduleFree
from sfplus_kernels.optim.adamw_schedule_free_paper import AdamWScheduleFreePaper
from sfplus_kernels.optim.base import ScheduleFreeOptimizer
from sfplus_kernels.optim.closure_forms import (
    AdamWScheduleFreeClosure,
    RAdamScheduleFreeClosure,
    SGDScheduleFreeClosure,
)
from sfplus_kernels.optim.loss_reports import report_loss
from sfplus_kernels.optim.radam_schedule_free import RAdamScheduleFree
from sfplus_kernels.optim.sgd_schedule_free import SGDScheduleFree
from sfplus_kernels.optim.shared_step import SharedStep
from sfplus_kernels.optim.tensor_state import Iterates
from sfplus_kernels.optim.wrapper import ScheduleFreeWrapper

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
