"""Fast Schedule-Free optimizers for PyTorch.

    from sfplus_kernels import AdamCScheduleFreePlus

See ``sfplus_kernels.backends.report()`` for what runs on this machine, ``sfplus_kernels.reference`` for the
plain transcriptions of the papers.
"""

from sfplus_kernels import backends
from sfplus_kernels._version import __version__
from sfplus_kernels.integrations.follow import follow
from sfplus_kernels.optim import (
    SGD,
    AdamC,
    AdamCScheduleFreePlus,
    AdamW,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    AdamWScheduleFreePaper,
    Iterates,
    RAdamScheduleFree,
    RAdamScheduleFreeClosure,
    ScheduleFreeWrapper,
    SFPlusWarning,
    SGDScheduleFree,
    SGDScheduleFreeClosure,
    SharedStep,
    add_loss,
    report_loss,
)

ScheduleFreePlus = AdamCScheduleFreePlus

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
    "ScheduleFreePlus",
    "ScheduleFreeWrapper",
    "SharedStep",
    "__version__",
    "add_loss",
    "backends",
    "follow",
    "report_loss",
]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("_"))})
