"""Lightning: ``Trainer(callbacks=[ScheduleFreeCallback()])``.

For Fabric no adapter is needed: ``follow(module, optimizer)`` and ``report_loss(optimizer, loss)``.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.integrations.clipping import take_over_clipping
from sfplus_kernels.integrations.figures import Figures
from sfplus_kernels.integrations.follow import follow
from sfplus_kernels.optim import ScheduleFreeWrapper, add_loss, unwrap

AVERAGES = ("StochasticWeightAveraging", "WeightAveraging")
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class ScheduleFreeHooks:
    """What ``ScheduleFreeCallback`` does.

    The parameters are y in training, x in validation, test and prediction and in every checkpoint, also of a
    module that calls its parts and never itself. The loss of a step is the sum of what ``backward()`` is
    called on, right under accumulation, in a short last window and with a gradient scaler.
    ``gradient_clip_val`` becomes the optimizer's ``max_grad_norm``. The figures of ``Figures.read`` go to
    the trainer's loggers, every ``log_every_n_steps``.

    With several optimizers (manual optimization) the module has to call ``report_loss`` itself.

    Raises:
        ValueError: when fitting starts: a learning-rate scheduler, or a callback that averages weights too.
    """

    def __init__(self) -> None:
        self._optimizers: list[Any] = []
        self._followers: list[Any] = []
        self._figures: list[Figures] = []
        self._clip_val: float | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the trainer's settings and hang the hooks on the module."""
        found = [unwrap(optimizer) for optimizer in trainer.optimizers]
        self._optimizers = [o for o in found if hasattr(o, "averaged")]
        _check(trainer, self._optimizers)
        self._clip_val = trainer.gradient_clip_val
        if trainer.gradient_clip_algorithm in (None, "norm"):
            taken = [take_over_clipping(o, trainer.gradient_clip_val) for o in self._optimizers]
            if taken and all(taken) and len(taken) == len(found):
                trainer.gradient_clip_val = None
        self._followers = [follow(pl_module, optimizer) for optimizer in self._optimizers]
        self._figures = [Figures(optimizer) for optimizer in self._optimizers]

    def on_train_batch_start(self, *_: Any) -> None:
        """y. Not earlier: after a validation ModelCheckpoint still saves."""
        for optimizer in self._optimizers:
            optimizer.train()

    def on_validation_start(self, *_: Any) -> None:
        """x."""
        for optimizer in self._optimizers:
            optimizer.eval()

    on_test_start = on_predict_start = on_validation_start

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Tell the optimizer the loss, without the scaler's factor."""
        if len(self._optimizers) != 1:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            loss = loss / scaler.scale(torch.ones((), device=loss.device))
        add_loss(self._optimizers[0], loss.detach())

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Log the figures."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            for number, figures in enumerate(self._figures):
                prefix = f"optimizer{number}/" if number else ""
                values = {prefix + name: value for name, value in figures.read().items()}
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=trainer.global_step)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """x stays in the module, and the trainer has its settings back for the next fit."""
        self.on_validation_start()
        trainer.gradient_clip_val = self._clip_val
        for follower in self._followers:
            follower.remove()


def _check(trainer: Any, optimizers: list[Any]) -> None:
    plain = [o for o in optimizers if not isinstance(o, ScheduleFreeWrapper)]
    if plain and trainer.lr_scheduler_configs:
        scheduler = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        raise ValueError(
            f"configure_optimizers returned a {scheduler}; Schedule-Free wants a constant learning rate: "
            "leave it out, and for a warmup set warmup_steps of the optimizer"
        )
    for callback in trainer.callbacks:
        if optimizers and any(base.__name__ in AVERAGES for base in type(callback).__mro__):
            raise ValueError(
                f"the trainer has a {type(callback).__name__}, which would average y; leave it out: what "
                "Schedule-Free evaluates and saves is an average already"
            )


def __getattr__(name: str) -> Any:
    """``ScheduleFreeCallback``, made when it is asked for."""
    if name == "ScheduleFreeCallback":
        imported = [package for package in PACKAGES if package in sys.modules]
        return _callback(tuple(imported) or PACKAGES[:1])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _callback(packages: tuple[str, ...]) -> type:
    """For each package that there is: their classes of this name are two."""
    bases = tuple(importlib.import_module(package).Callback for package in packages)
    members = {"__doc__": ScheduleFreeHooks.__doc__, "__module__": __name__}
    return type("ScheduleFreeCallback", (ScheduleFreeHooks, *bases), members)
