"""Schedule-Free RAdam for code that steps with a closure."""

from __future__ import annotations

from sfplus_kernels.core.closure_form import ClosureForm
from sfplus_kernels.optim.radam_schedule_free import RAdamScheduleFree


class RAdamScheduleFreeClosure(ClosureForm, RAdamScheduleFree):
    """``RAdamScheduleFree`` that holds x between steps; ``step`` takes a closure.

    Arguments, in upstream's order, are those of ``RAdamScheduleFree``.
    """
