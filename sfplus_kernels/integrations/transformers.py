"""Hugging Face Trainer, and trainers derived from it (TRL's).

    trainer = ScheduleFreeTrainer(
        model,
        TrainingArguments(..., lr_scheduler_type="constant"),
        train_dataset=dataset,
        optimizer_cls_and_kwargs=(AdamCScheduleFreePlus, {"max_lr": 3e-4, "warmup_steps": 500}),
    )

The groups' weight decay is ``TrainingArguments(weight_decay=)``, whatever the keywords of the optimizer say.
"""

from __future__ import annotations

import functools
from typing import Any

from sfplus_kernels.integrations.accelerate import attach, detach
from sfplus_kernels.integrations.clipping import take_over_clipping
from sfplus_kernels.integrations.figures import Figures
from sfplus_kernels.optim import unwrap

CONSTANT = ("constant", "constant_with_warmup")


class ScheduleFreeTrainerMixin:
    """Put in front of a ``Trainer``: ``class MyTrainer(ScheduleFreeTrainerMixin, SFTTrainer)``.

    The optimizer gets the losses that ``backward()`` is called on; its parameters are y in training, x in
    evaluation and in whatever is saved; ``args.max_grad_norm`` becomes the optimizer's; gamma and the other
    figures of ``Figures.read`` are logged beside ``learning_rate``.

    Raises:
        ValueError: a schedule other than "constant" and "constant_with_warmup" that the trainer would make.
    """

    _attached_to: Any = None
    _figures: Figures | None = None
    _max_grad_norm = 0.0

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Of the base; before the first one the optimizer is attached."""
        if (
            self._attached_to is not self.optimizer
        ):  # now both are wrapped in what they will be wrapped in
            detach(self.accelerator)  # from that of an earlier run
            attach(self.accelerator, self.optimizer, self.model)
            # a later run of this trainer may have a new optimizer, which is to clip as well
            self._max_grad_norm = self.args.max_grad_norm or self._max_grad_norm
            if take_over_clipping(self.optimizer, self._max_grad_norm):
                self.args.max_grad_norm = 0.0  # grad_norm is still logged
            self._attached_to, self._figures = self.optimizer, Figures(self.optimizer)
        return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """Of the base, if it is a constant one or the user's own."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type not in CONSTANT:
            raise ValueError(
                f"lr_scheduler_type is {self.args.lr_scheduler_type.value!r} (the default of "
                "TrainingArguments is 'linear'); Schedule-Free wants a constant learning rate: set it to "
                "'constant' or 'constant_with_warmup', or pass a scheduler of your own in optimizers="
            )
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def save_model(self: Any, *args: Any, **kwargs: Any) -> None:
        """Of the base, with x in the model on every rank: a change on one alone would round there alone."""
        if self.optimizer is not None and hasattr(unwrap(self.optimizer), "eval"):
            self.optimizer.eval()
        super().save_model(*args, **kwargs)  # type: ignore[misc]

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Of the base, with the optimizer's figures where the learning rate is logged."""
        if "learning_rate" in logs and self._figures is not None:
            logs |= {key: value for key, value in self._figures.read().items() if key not in logs}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def __getattr__(name: str) -> Any:
    """``ScheduleFreeTrainer``, made when it is asked for."""
    if name == "ScheduleFreeTrainer":
        return _trainer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _trainer() -> type:
    from transformers import Trainer

    members = {"__doc__": "``Trainer`` with ``ScheduleFreeTrainerMixin``.", "__module__": __name__}
    return type("ScheduleFreeTrainer", (ScheduleFreeTrainerMixin, Trainer), members)
