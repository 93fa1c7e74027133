"""What ``torch.optim.Optimizer`` does to every optimizer, where it is done in another way here."""

from __future__ import annotations

from typing import NoReturn

from sfplus_kernels.compiling import tracing


class TorchHabits:
    """Put before ``torch.optim.Optimizer`` in the bases of a class."""

    # torch wraps the step of each class with it; see ``tracing.hooked``
    profile_hook_step = staticmethod(tracing.hooked)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"copy.copy of {type(self).__name__} would be a second optimizer over one state, each with a "
            "count of its own; expected one: pass it on as it is, or take copy.deepcopy"
        )
