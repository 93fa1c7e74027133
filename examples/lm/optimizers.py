"""The optimizers that can be compared, each with its learning rate, behind the same few methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lm.settings import OptimizerName, Settings
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

WARMUP_SHARE = 0.3  # of the run, for all: AdamW was worse with a tenth
LONGEST_WARMUP = 450  # steps, of Schedule-Free AdamW: it need not grow with the run
BRAKED_WARMUP = 150  # steps, of ScheduleFree+, which brakes by itself where the gradients jump
PLAIN_DIM = 32  # the width at which the settings were searched: examples/anytime.py


class Method(ABC):
    """An optimizer and the way it is used."""

    optimizer: torch.optim.Optimizer
    rate_name: str

    @abstractmethod
    def step(self, step: int, loss: Tensor) -> None:
        """Step number ``step``, counted from 0, at the gradients of ``loss``."""

    @abstractmethod
    def rate(self) -> float:
        """The step size of the last step; waits for the device."""

    def validate(self, evaluate: Callable[[], float]) -> dict[str, float]:
        """Validation losses by the name of the point at which they were taken."""
        return {"validation_loss_y": evaluate()}

    def state_bytes(self) -> int:
        """Bytes in the tensors of the optimizer's state."""
        return sum(
            value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )


class ScheduleFree(Method):
    """An optimizer without a schedule, and two points to look at, x and y."""

    rate_name = "gamma"
    optimizer: AdamCScheduleFreePlus | AdamWScheduleFree

    def rate(self) -> float:
        """Gamma, the learning rate after all factors."""
        rates = self.optimizer.metrics()["scheduled_lr"]
        assert isinstance(rates, list)
        return rates[0]

    def validate(self, evaluate: Callable[[], float]) -> dict[str, float]:
        """At y, which is trained, and at x, the average, which is what one keeps."""
        at_y = super().validate(evaluate)
        with self.optimizer.averaged():
            return {"validation_loss_x": evaluate(), **at_y}


class ScheduleFreePlus(ScheduleFree):
    """AdamCScheduleFreePlus: the step size comes from the loss."""

    optimizer: AdamCScheduleFreePlus

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Settings) -> None:
        warmup = min(BRAKED_WARMUP, warmup_steps(settings))
        self.optimizer = AdamCScheduleFreePlus(
            parameters,
            # Without a cap the best lr was 0.3, and from 0.5 on the run ran away.
            lr=settings.lr_factor,
            max_lr=0.03 * scale(settings),  # AdamWScheduleFree's rate; gamma is there in most steps
            betas=(0.0, 0.99),
            r=1,
            warmup_steps=warmup,  # with c_warmup, too, nothing is averaged at first: too much for this gamma
            backend=settings.backend,
        )
        self.optimizer.train()

    def step(self, step: int, loss: Tensor) -> None:
        """The optimizer counts its steps itself; it needs the loss."""
        self.optimizer.step(loss=loss)


class ScheduleFreeAdamW(ScheduleFree):
    """AdamWScheduleFree: a given learning rate, which stays after the warmup."""

    optimizer: AdamWScheduleFree

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Settings) -> None:
        self.optimizer = AdamWScheduleFree(
            parameters,
            lr=0.03 * scale(settings),
            betas=(0.9, 0.99),
            r=1,
            warmup_steps=min(LONGEST_WARMUP, warmup_steps(settings)),
            backend=settings.backend,
        )
        self.optimizer.train()

    def step(self, step: int, loss: Tensor) -> None:
        """The optimizer counts its steps itself."""
        self.optimizer.step()


class AdamW(Method):
    """torch's fused AdamW with linear warmup and linear decay to 0, a baseline that is hard to beat."""

    rate_name = "lr"

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Settings) -> None:
        self.peak = 0.03 * scale(settings)
        self.steps = settings.steps
        self.warmup = warmup_steps(settings)
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    def step(self, step: int, loss: Tensor) -> None:
        """Set the learning rate of this step and take it."""
        rising = (step + 1) / self.warmup
        falling = (self.steps - step) / max(1, self.steps - self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * min(1.0, rising, falling)
        self.optimizer.step()

    def rate(self) -> float:
        """The learning rate, as the schedule has it."""
        return float(self.optimizer.param_groups[0]["lr"])


def scale(settings: Settings) -> float:
    """On the learning rates that were best at PLAIN_DIM: less for wider models, which were not searched."""
    return settings.lr_factor * PLAIN_DIM / settings.dim


def warmup_steps(settings: Settings) -> int:
    """Steps of rising step size at the beginning."""
    return max(1, round(WARMUP_SHARE * settings.steps))


def make_method(
    name: OptimizerName, parameters: Iterable[nn.Parameter], settings: Settings
) -> Method:
    """The optimizer of that name.

    Raises:
        RuntimeError: the backend in the settings cannot run here.
    """
    methods: dict[OptimizerName, Callable[[Iterable[nn.Parameter], Settings], Method]] = {
        OptimizerName.SCHEDULE_FREE_PLUS: ScheduleFreePlus,
        OptimizerName.ADAMW: AdamW,
        OptimizerName.ADAMW_SCHEDULE_FREE: ScheduleFreeAdamW,
    }
    return methods[name](parameters, settings)
