"""One class per algorithm with x, y and z explicit: oracles, and code to read beside the paper."""

from sfplus_kernels.reference.adamc_schedule_free_plus import AdamCScheduleFreePlusReference
from sfplus_kernels.reference.adamw_schedule_free import AdamWScheduleFreeReference
from sfplus_kernels.reference.adamw_schedule_free_paper import AdamWScheduleFreePaperReference
from sfplus_kernels.reference.radam_schedule_free import RAdamScheduleFreeReference
from sfplus_kernels.reference.schedule_free_wrapper import ScheduleFreeWrapperReference
from sfplus_kernels.reference.sgd_schedule_free import SGDScheduleFreeReference

__all__ = [
    "AdamCScheduleFreePlusReference",
    "AdamWScheduleFreePaperReference",
    "AdamWScheduleFreeReference",
    "RAdamScheduleFreeReference",
    "SGDScheduleFreeReference",
    "ScheduleFreeWrapperReference",
]
