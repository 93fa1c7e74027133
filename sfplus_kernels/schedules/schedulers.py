"""The schedules as ``torch.optim.lr_scheduler`` classes: a group's lr is its first one times the factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sfplus_kernels.schedules import functions

POSITION = ("last_epoch", "base_lrs", "_last_lr", "_step_count")


class FactorLR(LRScheduler):
    """What the schedulers share.

    The state dict holds the position in the run, and not the schedule: that is what the arguments say. So a
    run may be resumed with another end, as WSD allows at any time before its cooldown.
    """

    def __init__(
        self, optimizer: Optimizer, factor: Callable[[int], float], last_epoch: int
    ) -> None:
        factor(0)  # bad arguments are refused before the optimizer is touched
        self.factor = factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The lr of each group at this step."""
        factor = self.factor(self.last_epoch)
        return [lr * factor for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, and the lr of each group that the factors multiply."""
        return {key: self.__dict__[key] for key in POSITION}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, with the schedule that this scheduler was made with.

        Args:
            state_dict: of any of these schedulers, or of one of torch's that has the same groups.

        Raises:
            ValueError: a key is missing, or it has another number of groups.
        """
        missing = [key for key in POSITION if key not in state_dict]
        if missing:
            raise ValueError(
                f"the state dict has no {', '.join(missing)}; expected that of an LR scheduler, it has "
                f"{', '.join(map(str, state_dict)) or 'nothing'}"
            )
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"the state dict has {len(state_dict['base_lrs'])} groups, the optimizer has "
                f"{len(self.base_lrs)}; make the groups as they were saved"
            )
        self.__dict__.update({key: state_dict[key] for key in POSITION})


class _DecayLR(FactorLR):
    """A decay to ``end_factor`` over the whole run, after a warmup."""

    _schedule: Callable[..., float]

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        warmup_steps: int = 0,
        end_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        factor = partial(
            type(self)._schedule,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            end_factor=end_factor,
        )
        super().__init__(optimizer, factor, last_epoch)


class LinearDecayLR(_DecayLR):
    """Linear decay, after a warmup: `linear_decay`.

    Args:
        optimizer: whose lr is set.
        total_steps: the step at which ``end_factor`` is reached: the number of steps of the run.
        warmup_steps: these many steps go up; they belong to ``total_steps``.
        end_factor: the factor from ``total_steps`` on.
        last_epoch: the last step of a run that is resumed, -1 for a new one.

    Raises:
        ValueError: an argument out of its range.
    """

    _schedule = staticmethod(functions.linear_decay)


class CosineLR(_DecayLR):
    """Cosine decay, after a warmup: `cosine`.

    Arguments and errors are those of `LinearDecayLR`.
    """

    _schedule = staticmethod(functions.cosine)


class WarmupStableDecayLR(FactorLR):
    """WSD: warmup, constant, cooldown: `warmup_stable_decay`.

    Args:
        optimizer: whose lr is set.
        total_steps: the step at which ``end_factor`` is reached: the number of steps of the run.
        cooldown_steps: length of the way down.
        warmup_steps: length of the way up.
        cooldown: ``"1-sqrt"`` or ``"linear"``.
        end_factor: the factor from ``total_steps`` on.
        last_epoch: the last step of a run that is resumed, -1 for a new one.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        cooldown_steps: int,
        warmup_steps: int = 0,
        cooldown: functions.Cooldown = "1-sqrt",
        end_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        factor = partial(
            functions.warmup_stable_decay,
            total_steps=total_steps,
            cooldown_steps=cooldown_steps,
            warmup_steps=warmup_steps,
            cooldown=cooldown,
            end_factor=end_factor,
        )
        super().__init__(optimizer, factor, last_epoch)


class InverseSqrtLR(FactorLR):
    """1 / sqrt(t), after a warmup, without an end: `inverse_sqrt`.

    Args:
        optimizer: whose lr is set.
        warmup_steps: these many steps go up.
        timescale: how many steps it takes until the factor is 1 / sqrt(2), after the warmup; None for
            ``warmup_steps``, or 1 without a warmup.
        last_epoch: the last step of a run that is resumed, -1 for a new one.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int = 0,
        timescale: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        factor = partial(functions.inverse_sqrt, warmup_steps=warmup_steps, timescale=timescale)
        super().__init__(optimizer, factor, last_epoch)


class RefinedLR(FactorLR):
    """A refined schedule, stretched over this run: `refined`.

    Args:
        optimizer: whose lr is set.
        factors: what `refine` made of the gradient norms of an earlier run, of any length.
        total_steps: the number of steps of this run, at which the last factor is reached.
        warmup_steps: the factors of these many steps are multiplied with a warmup.
        last_epoch: the last step of a run that is resumed, -1 for a new one.

    Raises:
        ValueError: fewer than two factors, one that is negative or not finite, or an argument out of its
            range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factors: Sequence[float],
        total_steps: int,
        *,
        warmup_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        points = tuple(map(float, factors))
        for place, point in enumerate(points):
            if not 0 <= point < math.inf:
                raise ValueError(
                    f"factor {place} of {len(points)} is {point}; expected finite ones, "
                    "0 or more, as refine makes them"
                )
        factor = partial(
            functions.refined, factors=points, total_steps=total_steps, warmup_steps=warmup_steps
        )
        super().__init__(optimizer, factor, last_epoch)
