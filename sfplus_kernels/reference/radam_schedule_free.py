"""Schedule-Free RAdam (arXiv 2405.15682 and 1908.03265) with x, y and z explicit."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sfplus_kernels.reference.given_lr import GivenLrReference, moving_average


class RAdamScheduleFreeReference(GivenLrReference):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code, more memory.

    Arguments as in ``sfplus_kernels.RAdamScheduleFree``, without checks. Keeps exp_avg_sq too.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
        *,
        row_norm: float | None = None,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "silent_sgd_phase": silent_sgd_phase,
            "row_norm": row_norm,
        }
        super().__init__(params, per_group, maximize=maximize)

    def rho(self, group: dict[str, Any]) -> tuple[float, float]:
        """Length of the moving average of g^2, simplified: in the limit, and at the group's step."""
        t, beta2 = group["k"] + 1, group["betas"][1]
        rho_inf = 2 / (1 - beta2) - 1
        return rho_inf, rho_inf - 2 * t * beta2**t / (1 - beta2**t)

    def lr_factor(self, group: dict[str, Any]) -> float:
        """The rectification, once the variance of v is finite; before that nothing moves, or SGD does."""
        rho_inf, rho_t = self.rho(group)
        if rho_t > 4:
            numerator = (rho_t - 4) * (rho_t - 2) * rho_inf
            return math.sqrt(numerator / ((rho_inf - 4) * (rho_inf - 2) * rho_t))
        return 0.0 if group["silent_sgd_phase"] else 1.0

    def direction(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """g / (sqrt(v_hat) + eps) where it is rectified, g before"""
        v_hat = moving_average(state, "exp_avg_sq", g * g, group["betas"][1])
        return g / (v_hat.sqrt() + group["eps"]) if self.rho(group)[1] > 4 else g
