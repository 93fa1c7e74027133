"""Signs that a run is ruined, seen in the figures of older steps: nothing waits for them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sfplus_kernels.contract.layout import Global, Group
from sfplus_kernels.core.warnings_once import warn_once
from sfplus_kernels.state.run import of_group

LARGEST_GAMMA = 1.0
"""Adam moves every element by about gamma in a step: by 0.001 to 0.1 where training goes well."""

JUMP = 5.0
"""Times the Polyak step size of the early steps: in 45 runs of seven kinds of models (examples/step_sizes.py)
the 31 good ones stayed below 3.2, the 14 that ran away came above 5.4."""

EARLY_LOOKS = (3, 6)
"""After the warmup: how many are needed to know the early steps, and how many are enough."""

STUCK_STEPS = 50
"""Without a step size above 0 where the loss is below f_star."""

STUCK_ABOVE = 400
"""The same where it is above. There gamma is 0 where z has overshot, in one step of three of a good run that
has nearly nothing left to learn, so that several looks in a row see it by chance."""

LARGEST_DECAY = 0.05
"""Of the weights, in one step. An MLP and convolutions on digits ended as they did without decay at up to
0.03, with a loss of four times that and more at 0.09, and had learned nothing at 0.9."""

SKIPPED_IN_A_ROW = 10

ONE_NORM = 3
"""Looks in a row that see different gradients of one L2 norm: they were clipped to it."""


class Runaway:
    """What one optimizer remembers of the steps that it looked at, to tell a run that runs away."""

    def __init__(self) -> None:
        self._early: list[tuple[float, float]] = []  # Polyak step sizes, and the gammas of them
        self._last_moved = 0.0  # the last k at which a gamma was above 0
        self._norms: list[tuple[float, float]] = []  # L2 and L1 at looks that saw one L2 norm

    def look(self, owner: object, figures: Sequence[float]) -> None:
        """Warn if steps are skipped one after the other.

        Args:
            owner: the optimizer.
            figures: as of ``Engine.figures``, of any step.
        """
        in_a_row = figures[Global.CONSECUTIVE_SKIPPED_STEPS]
        if in_a_row >= SKIPPED_IN_A_ROW:
            warn_once(owner, "skipped", steps=int(in_a_row))

    def look_at_gamma(
        self, owner: object, figures: Sequence[float], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        """Warn if a Polyak step is absurdly large, or none at all."""
        if len(figures) < len(Global) + len(groups) * len(Group):
            return  # of before a group was added
        self._look_at_norms(owner, figures[Global.GRAD_NORM], figures[Global.GRAD_L1])
        rows = [of_group(figures, number) for number in range(len(groups))]
        k = int(rows[0]["k"])
        gamma, polyak_lr = max(row["lr_max"] for row in rows), figures[Global.POLYAK_LR]
        if gamma > LARGEST_GAMMA:
            warn_once(owner, "gamma", gamma=gamma, k=k)
        warm = k > groups[0]["warmup_steps"] and 0 < polyak_lr < math.inf
        self._look_for_jump(owner, polyak_lr, max(row["scheduled_lr"] for row in rows), k, warm)
        for row, group in zip(rows, groups, strict=True):
            share = row["lr_max"] ** 2 * group["weight_decay"]
            if share > LARGEST_DECAY:
                warn_once(owner, "decay", share=share, decay=group["weight_decay"])
        above = figures[Global.FUNCTION_VALUE] - groups[0]["f_star"]
        is_beaten = (-above if groups[0]["maximize"] else above) <= 0
        if any(row["scheduled_lr"] > 0 for row in rows):
            self._last_moved = k
        elif k - self._last_moved >= (STUCK_STEPS if is_beaten else STUCK_ABOVE):
            warn_once(owner, "gamma-zero", steps=k - int(self._last_moved))

    def _look_for_jump(
        self, owner: object, polyak_lr: float, gamma: float, k: int, warm: bool
    ) -> None:
        """Warn if both have grown since the early steps: gamma does not where max_lr held it then and now."""
        needed, enough = EARLY_LOOKS
        if len(self._early) >= needed:
            early, early_gamma = map(statistics.median, zip(*self._early, strict=True))
            if polyak_lr > JUMP * early and gamma > JUMP * early_gamma:
                warn_once(owner, "gamma-jump", now=polyak_lr, early=early, k=k)
                return
        if len(self._early) < enough and warm:
            self._early.append((polyak_lr, gamma))

    def _look_at_norms(self, owner: object, l2: float, l1: float) -> None:
        """Warn if gradients are clipped before the step.

        That of a run on one whole batch may keep its L2 norm because it hardly changes: then L1 does not
        either.
        """
        if self._norms:
            last_l2, last_l1 = self._norms[-1]
            same = math.isclose(l2, last_l2, rel_tol=1e-5)
            if not same or math.isclose(l1, last_l1, rel_tol=1e-3):
                self._norms = []
        self._norms.append((l2, l1))
        if len(self._norms) >= ONE_NORM:
            warn_once(owner, "clipped", norm=l2)
            self._norms = []
