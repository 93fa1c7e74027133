"""What torch.compile sees of an optimizer, in code that it traces.

Run state is on the device, but hyperparameters, counters and plans are Python values that may change at
each step: traced, each change would compile the caller anew. So the methods run outside of the graph, as
those of torch.optim do, but for the passes of a step, which become an operator (operator.py). That module
is imported where something is traced only: it needs torch._dynamo, which takes long to import.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._C._autograd import _profiler_enabled
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """A function that breaks the graph, in silence, instead of being traced."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        from sfplus_kernels.compiling import operator

        return operator.outside(function, args, kwargs)

    return call  # type: ignore[return-value]


def ends_with_its_passes(step: Function) -> Function:
    """Mark a ``step`` after whose passes nothing happens that reads what they wrote."""
    step.ends_with_its_passes = True  # type: ignore[attr-defined]
    return step


def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` with torch's hooks and profiler range, and, where it is marked, with its passes in the graph.

    In place of ``torch.optim.Optimizer.profile_hook_step``, whose profiler range the compiler complains of.
    """
    profiled = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(profiled)
    def plain(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        # the range alone takes longer than all else around a step, so nobody pays for it but the profiler
        if (
            _profiler_enabled()
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
        ):
            return profiled(optimizer, *args, **kwargs)
        return step(optimizer, *args, **kwargs)

    if not hasattr(step, "ends_with_its_passes"):
        return untraced(plain)

    @functools.wraps(plain)
    def entry(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return plain(optimizer, *args, **kwargs)
        from sfplus_kernels.compiling import operator

        return operator.traced_step(plain, optimizer, args, kwargs)

    return entry
