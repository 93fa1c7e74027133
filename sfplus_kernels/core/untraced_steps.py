"""How torch wraps the ``step`` of an optimizer class."""

from __future__ import annotations

from sfplus_kernels.compiling import tracing


class UntracedSteps:
    """Put before ``torch.optim.Optimizer`` in the bases of a class: see ``tracing.hooked``."""

    # torch wraps the step of each class with it
    profile_hook_step = staticmethod(tracing.hooked)
