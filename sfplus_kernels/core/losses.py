"""The loss of a step that is made of several micro-batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.core.wrappers import unwrap
from sfplus_kernels.state.checks import check_loss


class LossReports:
    """What was told of the losses since the last step; on the device, nothing waits for it.

    Either whole losses, of which the weighted mean counts, or parts, which are added up.
    """

    def __init__(self) -> None:
        self._sum: float | Tensor = 0.0
        self._weight: float | Tensor | None = None  # None: parts
        self._any = False

    def __bool__(self) -> bool:
        """Whether anything was told."""
        return self._any

    def report(self, loss: float | Tensor, weight: float | Tensor) -> None:
        """One whole loss.

        Raises:
            ValueError: this step has parts already.
        """
        if self._any and self._weight is None:
            raise ValueError(MIXED)
        self._weight = weight if self._weight is None else self._weight + weight
        self._sum = self._sum + loss * weight
        self._any = True

    def add(self, part: float | Tensor) -> None:
        """One part of the loss.

        Raises:
            ValueError: this step has whole losses already.
        """
        if self._weight is not None:
            raise ValueError(MIXED)
        self._sum = self._sum + part
        self._any = True

    def take(self) -> float | Tensor | None:
        """The loss, and forget it; None if nothing was told."""
        if not self._any:
            return None
        loss = self._sum if self._weight is None else self._sum / self._weight
        self.__init__()  # type: ignore[misc]
        return loss


MIXED = (
    "one step was told of its loss by report_loss (whole losses, of which it takes the mean) and by add_loss "
    "(parts, which it adds up); use one of them. The adapters for trainers call add_loss: then report nothing"
)


@untraced
def report_loss(optimizer: Any, loss: float | Tensor, weight: float | Tensor = 1.0) -> None:
    """Tell ``optimizer`` the loss of a micro-batch; ``optimizer.step()`` then uses the weighted mean.

    For loops that you write yourself. Where the losses are divided before ``backward()`` by what you do not
    know, as trainers do, see ``add_loss``.

    Args:
        optimizer: ``AdamCScheduleFreePlus``, or a wrapper of a trainer around it. The classes that need no
            loss ignore it.
        loss: of this micro-batch alone, not divided by their number: a 0-dim tensor or a float.
        weight: its share, such as its number of tokens; only the ratios count.

    Raises:
        TypeError: another package's optimizer, or a loss that is no number.
        ValueError: a loss that is not a scalar; ``add_loss`` was called for the same step.
    """
    reports = _reports_of(optimizer)
    if reports is not None:
        reports.report(check_loss(loss), weight)


@untraced
def add_loss(optimizer: Any, part: float | Tensor) -> None:
    """Tell ``optimizer`` a part of the loss of its next step: ``optimizer.step()`` uses the sum of the parts.

    A part is the value that ``backward()`` was called on, without the factor of a gradient scaler. Whatever
    it was divided by, the sum is then scaled as the gradient is.

    Args:
        optimizer: ``AdamCScheduleFreePlus``, or a wrapper of a trainer around it. The classes that need no
            loss ignore it.
        part: a 0-dim tensor on any device (never waited for) or a float.

    Raises:
        TypeError: another package's optimizer, or a part that is no number.
        ValueError: a part that is not a scalar; ``report_loss`` was called for the same step.
    """
    reports = _reports_of(optimizer)
    if reports is not None:
        reports.add(check_loss(part))


def _reports_of(optimizer: Any) -> LossReports | None:
    """None for an optimizer of this package that needs no loss: one loop serves them all."""
    inner = unwrap(optimizer)
    if not hasattr(inner, "needs_loss"):
        raise TypeError(
            f"report_loss or add_loss got a {type(inner).__name__}; expected an optimizer of sfplus_kernels, "
            "or a wrapper around one"
        )
    return inner.loss_reports if inner.needs_loss else None
