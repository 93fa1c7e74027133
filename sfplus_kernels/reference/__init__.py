"""One class per algorithm with x, y and z explicit: oracles, and code to read beside the paper."""

from sfplus_kernels.reference.adamc_schedule_free_plus import AdamCScheduleFreePlusReference

__all__ = ["AdamCScheduleFreePlusReference"]
