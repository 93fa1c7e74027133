"""What trainers wrap around an optimizer, looked through."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

WRAPPED = ("optimizer", "_optimizer", "optim", "opt")
"""Where wrappers keep the optimizer that they wrap: those of Accelerate, DeepSpeed, Lightning and Fabric, of
torch's ZeroRedundancyOptimizer, of fastai."""


def unwrap(optimizer: Any) -> Any:
    """The optimizer within a trainer's wrappers; one that is not wrapped is given back.

    Some wrappers are instances of the class that they wrap, with a copy of its attributes: what is asked of
    them is answered out of that copy, so the way in comes before everything else.
    """
    while True:
        held = getattr(optimizer, "__dict__", {})
        inner = (held[name] for name in WRAPPED if hasattr(held.get(name), "param_groups"))
        within = next(inner, None)
        if within is None:
            return optimizer
        optimizer = within


def of_the_inner(method: Method) -> Method:
    """A method that, called on a wrapper which inherits it, is that of the optimizer within."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(unwrap(self), *args, **kwargs)

    return call  # type: ignore[return-value]
