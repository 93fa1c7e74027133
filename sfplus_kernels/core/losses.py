"""The loss of a step that is made of several micro-batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.state.checks import check_loss

WRAPPED = ("optimizer", "_optimizer")
"""Where Accelerate's, Lightning's and Fabric's wrappers keep the optimizer that they wrap."""


class LossReports:
    """Weighted mean of the losses reported since the last step; on the device, nothing waits for it."""

    def __init__(self) -> None:
        self._sum: float | Tensor = 0.0
        self._weight: float | Tensor = 0.0
        self._any = False

    def add(self, loss: float | Tensor, weight: float | Tensor) -> None:
        """Add one loss."""
        self._sum = self._sum + loss * weight
        self._weight = self._weight + weight
        self._any = True

    def take(self) -> float | Tensor | None:
        """The mean, and forget it; None if nothing was reported."""
        if not self._any:
            return None
        mean = self._sum / self._weight
        self.__init__()  # type: ignore[misc]
        return mean


@untraced
def report_loss(optimizer: Any, loss: float | Tensor, weight: float | Tensor = 1.0) -> None:
    """Tell ``optimizer`` the loss of a micro-batch; ``optimizer.step()`` then uses the weighted mean.

    Args:
        optimizer: ``AdamCScheduleFreePlus``, or a wrapper of Accelerate, Lightning or Fabric around it.
        loss: of this micro-batch alone, not divided by their number: a 0-dim tensor or a float.
        weight: its share, such as its number of tokens; only the ratios count.

    Raises:
        TypeError: an optimizer that needs no loss, or a loss that is no number.
        ValueError: a loss that is not a scalar.
    """
    inner = optimizer
    while not hasattr(inner, "loss_reports"):
        inner = next((getattr(inner, name) for name in WRAPPED if hasattr(inner, name)), None)
        if inner is None:
            raise TypeError(
                f"report_loss got a {type(optimizer).__name__}; expected AdamCScheduleFreePlus, the "
                "optimizer whose step needs the loss, or a wrapper around it"
            )
    inner.loss_reports.add(check_loss(loss), weight)
