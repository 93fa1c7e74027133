"""One class per algorithm, with x, y and z explicit if it averages: oracles, and code to read."""

from sfplus_kernels.reference.adamc import AdamCReference, AdamWReference
from sfplus_kernels.reference.adamc_schedule_free_plus import AdamCScheduleFreePlusReference
from sfplus_kernels.reference.adamw_schedule_free import AdamWScheduleFreeReference
from sfplus_kernels.reference.adamw_schedule_free_paper import AdamWScheduleFreePaperReference
from sfplus_kernels.reference.radam_schedule_free import RAdamScheduleFreeReference
from sfplus_kernels.reference.schedule_free_wrapper import ScheduleFreeWrapperReference
from sfplus_kernels.reference.sgd import SGDReference
from sfplus_kernels.reference.sgd_schedule_free import SGDScheduleFreeReference

__all__ = [
    "AdamCReference",
    "AdamCScheduleFreePlusReference",
    "AdamWReference",
    "AdamWScheduleFreePaperReference",
    "AdamWScheduleFreeReference",
    "RAdamScheduleFreeReference",
    "SGDReference",
    "SGDScheduleFreeReference",
    "ScheduleFreeWrapperReference",
]
