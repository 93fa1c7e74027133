"""The optimizers: thin classes that validate, gather and call the functional form."""

from sfplus_kernels.optim.adamc_schedule_free_plus import AdamCScheduleFreePlus
from sfplus_kernels.optim.base import ScheduleFreeOptimizer
from sfplus_kernels.optim.tensor_state import Iterates

__all__ = ["AdamCScheduleFreePlus", "Iterates", "ScheduleFreeOptimizer"]
