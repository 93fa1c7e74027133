"""Hugging Face Accelerate: the loss of a step from ``accelerator.backward``, y and x by the model's mode.

model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
attach(accelerator, optimizer, model)  # the loop stays as it is
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

from torch import nn

from sfplus_kernels.integrations import deepspeed
from sfplus_kernels.integrations.follow import follow
from sfplus_kernels.optim import add_loss, unwrap


def attach(accelerator: Any, optimizer: Any, model: nn.Module | None = None) -> None:
    """Make ``accelerator.backward`` tell the optimizer its loss, and the optimizer follow ``model``.

    The loss of a step is the sum of what ``backward()`` is called on, so it is right under accumulation, in a
    short last window too, and under a gradient scaler. Call it again after a further ``prepare``.

    Args:
        accelerator: after ``prepare``.
        optimizer: what ``prepare`` returned, or the optimizer that it was given.
        model: likewise; None to switch by ``optimizer.train()`` and ``eval()`` yourself. Under DeepSpeed's
            ZeRO these two bring the model's weights along, and you have to call them in either case.

    Raises:
        ValueError: the accelerator tells its losses to another ScheduleFree+ already; under DeepSpeed, what
            ``integrations.deepspeed.prepare`` raises.
    """
    inner = unwrap(optimizer)
    if accelerator.distributed_type == "DEEPSPEED":
        deepspeed.prepare(accelerator.deepspeed_engine_wrapped.engine)
    elif model is not None:
        follow(accelerator.unwrap_model(model), inner)
    if not getattr(inner, "needs_loss", False):
        return
    backward = accelerator.backward
    if isinstance(backward, TellingBackward):
        if backward.optimizer() not in (None, inner):
            raise ValueError(
                "attach: this accelerator tells its losses to another ScheduleFree+ already, and backward() "
                "does not say whose loss it is; with several, call report_loss(optimizer, loss) yourself. If "
                "this one takes the place of the other, call detach(accelerator) before"
            )
        backward = backward.plain
    accelerator.backward = TellingBackward(accelerator, backward, inner)


def detach(accelerator: Any) -> None:
    """``accelerator.backward`` tells nobody any more; for another optimizer in the place of the first."""
    if isinstance(accelerator.backward, TellingBackward):
        accelerator.backward = accelerator.backward.plain


class TellingBackward:
    """``accelerator.backward`` that tells an optimizer of each loss before it goes on."""

    def __init__(self, accelerator: Any, plain: Any, optimizer: Any) -> None:
        functools.update_wrapper(self, plain)
        self.plain = plain
        self.optimizer = weakref.ref(optimizer)
        self._accelerator = weakref.ref(accelerator)

    def __call__(self, loss: Any, **kwargs: Any) -> Any:
        """``accelerator.backward``."""
        optimizer, accelerator = self.optimizer(), self._accelerator()
        if optimizer is None or accelerator is None:
            return self.plain(loss, **kwargs)
        # by what backward() is about to divide it; the Trainer has done so already under DeepSpeed
        divided = kwargs.get("scale_wrt_gas") is False
        parts = 1 if divided else accelerator.gradient_accumulation_steps
        add_loss(optimizer, loss.detach() / parts)  # before: under DeepSpeed backward() steps too
        try:
            return self.plain(loss, **kwargs)
        except BaseException:
            optimizer.loss_reports.take()  # no gradient belongs to it
            raise
