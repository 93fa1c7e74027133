"""Schedule-Free AdamW (arXiv 2405.15682) with x, y and z explicit, for reading and testing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.reference.given_lr import GivenLrReference, moving_average


class AdamWScheduleFreeReference(GivenLrReference):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code, more memory.

    Arguments as in ``sfplus_kernels.AdamWScheduleFree``, without checks. Keeps exp_avg_sq too, and
    exp_avg where ``inner_momentum`` is above 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        inner_momentum: float = 0.0,
        row_norm: float | None = None,
        decoupling_c: float | None = None,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "inner_momentum": inner_momentum,
            "row_norm": row_norm,
            "decoupling_c": decoupling_c,
        }
        super().__init__(params, per_group, maximize=maximize)

    def averaging_weight(self, group: dict[str, Any], gamma: float) -> float:
        """c_k; with a C it is min(c_k (1 - beta) C, 1) (arXiv 2507.09846)."""
        c = super().averaging_weight(group, gamma)
        if group["decoupling_c"] is not None:
            c = min(c * (1 - group["betas"][0]) * group["decoupling_c"], 1.0)
            group["ckp1"] = c
        return c

    def direction(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """m_hat / (sqrt(v_hat) + eps)"""
        inner_momentum = group["inner_momentum"]
        m_hat = moving_average(state, "exp_avg", g, inner_momentum) if inner_momentum > 0 else g
        v_hat = moving_average(state, "exp_avg_sq", g * g, group["betas"][1])
        u: Tensor = m_hat / (v_hat.sqrt() + group["eps"])
        return u
