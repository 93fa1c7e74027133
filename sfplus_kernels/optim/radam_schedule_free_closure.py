"""Schedule-Free RAdam for code that steps with a closure."""

from __future__ import annotations

from sfplus_kernels.core.closure_form import ClosureForm
from sfplus_kernels.optim.radam_schedule_free import RAdamScheduleFree


class RAdamScheduleFreeClosure(ClosureForm, RAdamScheduleFree):
    """``RAdamScheduleFree`` that holds x between steps; ``step`` takes a closure.

    Arguments, in upstream's order, are those of ``RAdamScheduleFree``.

    Raises:
        TypeError, ValueError: as there; ``state_format="8bit"`` with bfloat16 parameters, whose 24 bits of y
            would be rounded twice a step.
        RuntimeError: the named backend is unavailable; the message says why.
    """
