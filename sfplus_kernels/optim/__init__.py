"""What a user imports: one algorithm a file, its arguments and their ranges."""

from sfplus_kernels.core.losses import add_loss, report_loss
from sfplus_kernels.core.modes import ScheduleFreeOptimizer
from sfplus_kernels.core.shared_step import SharedStep
from sfplus_kernels.core.warnings_once import SFPlusWarning
from sfplus_kernels.core.wrappers import unwrap
from sfplus_kernels.optim.adamc import AdamC
from sfplus_kernels.optim.adamc_schedule_free_plus import AdamCScheduleFreePlus
from sfplus_kernels.optim.adamw import AdamW
from sfplus_kernels.optim.adamw_schedule_free import AdamWScheduleFree
from sfplus_kernels.optim.adamw_schedule_free_closure import AdamWScheduleFreeClosure
from sfplus_kernels.optim.adamw_schedule_free_paper import AdamWScheduleFreePaper
from sfplus_kernels.optim.radam_schedule_free import RAdamScheduleFree
from sfplus_kernels.optim.radam_schedule_free_closure import RAdamScheduleFreeClosure
from sfplus_kernels.optim.schedule_free_wrapper import ScheduleFreeWrapper
from sfplus_kernels.optim.sgd import SGD
from sfplus_kernels.optim.sgd_schedule_free import SGDScheduleFree
from sfplus_kernels.optim.sgd_schedule_free_closure import SGDScheduleFreeClosure
from sfplus_kernels.state.iterates import Iterates

__all__ = [
    "SGD",
    "AdamC",
    "AdamCScheduleFreePlus",
    "AdamW",
    "AdamWScheduleFree",
    "AdamWScheduleFreeClosure",
    "AdamWScheduleFreePaper",
    "Iterates",
    "RAdamScheduleFree",
    "RAdamScheduleFreeClosure",
    "SFPlusWarning",
    "SGDScheduleFree",
    "SGDScheduleFreeClosure",
    "ScheduleFreeOptimizer",
    "ScheduleFreeWrapper",
    "SharedStep",
    "add_loss",
    "report_loss",
    "unwrap",
]
