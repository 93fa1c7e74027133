"""Optimizers without averages, as torch.optim has them: what the parameter holds is the weight."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from sfplus_kernels.checkpoints.torch_optim import torch_state_dict
from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.core.given_lr import GivenLrOptimizer
from sfplus_kernels.core.hyperparameters import check_lr, check_number
from sfplus_kernels.core.other_formats import state_dict_in
from sfplus_kernels.core.wrappers import of_the_inner


class PlainOptimizer(GivenLrOptimizer):
    """Base of the optimizers that keep no displacement: x, y and z are one."""

    group_figures = ("k", "lr_max", "scheduled_lr")
    needed_of_torch: ClassVar[tuple[str, ...]] = ()  # hyperparameters that torch's namesake has too

    def upstream_arguments(self) -> list[str]:
        """The hyperparameters that torch's class of this name has too."""
        return list(self.needed_of_torch)

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """There was no learning rate yet."""
        return 0.0

    def lr_factor(self, group: Mapping[str, Any]) -> float:
        """A warmup belongs to the schedule."""
        return 1.0

    def train(self, mode: bool = True) -> None:
        """Does nothing: for code that is written for the other classes."""

    def eval(self) -> None:
        """Does nothing: there is no average."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Does nothing: there is no average."""
        yield

    def averaged_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """A copy of ``model.state_dict()``: there is no average."""
        return copy.deepcopy(model.state_dict())

    @torch.no_grad()
    @of_the_inner
    def to_upstream_state_dict(self) -> dict[str, Any]:
        """A state dict that torch's class of this name loads and continues from.

        Raises:
            ValueError: something is at work that torch's class does not have.
        """
        return torch_state_dict(self, self.state_dict(), self._parameters())

    @untraced
    @torch.no_grad()
    @of_the_inner
    def state_dict_in(self, state_format: str) -> dict[str, Any]:
        """A copy of ``state_dict()`` in another format, as the Schedule-Free classes have it.

        Raises:
            ValueError: an unknown format, or one that this optimizer could not have.
        """
        return state_dict_in(self, state_format)


def check_refused(group: Mapping[str, Any], name: str, refused: Mapping[str, str]) -> None:
    """Raise ValueError if one of torch's options is on that there are no kernels for.

    Args:
        refused: what to do instead of each.
    """
    for option, instead in refused.items():
        if group.get(option):
            raise ValueError(
                f"{option} is {group[option]!r}, which {name} does not have; {instead}, or use torch's class"
            )


def check_decay_peak(group: Mapping[str, Any]) -> float:
    """``layout.Hyper.DECAY_PEAK``: 0 without the correction, -1 for the largest gamma so far."""
    if not group["normalized"]:
        return 0.0
    if group["max_lr"] is None:
        return -1.0
    peak, lr = check_number("max_lr", group["max_lr"], 0, open_low=True), check_lr(group["lr"])
    if lr > peak * (1 + 1e-6):
        raise ValueError(
            f"lr is {lr:g}, above max_lr ({peak:g}); expected max_lr to be the largest learning rate of the "
            "schedule, or None for the largest so far"
        )
    return peak
