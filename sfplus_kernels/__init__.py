"""Fast Schedule-Free optimizers for PyTorch.

    from sfplus_kernels import AdamCScheduleFreePlus

See ``sfplus_kernels.backends.report()`` for what runs on this machine, ``sfplus_kernels.reference`` for the
plain transcriptions of the papers.
"""

from sfplus_kernels import backends
from sfplus_kernels._version import __version__
from sfplus_kernels.optim import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    Iterates,
    SGDScheduleFree,
)

ScheduleFreePlus = AdamCScheduleFreePlus

__all__ = [
    "AdamCScheduleFreePlus",
    "AdamWScheduleFree",
    "Iterates",
    "SGDScheduleFree",
    "ScheduleFreePlus",
    "__version__",
    "backends",
]
