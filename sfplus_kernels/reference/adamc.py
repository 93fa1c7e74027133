"""AdamW (arXiv 1711.05101), and its correction (arXiv 2506.02285), for reading and testing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.reference.plain import PlainReference, buffer


class AdamCReference(PlainReference):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code.

    Arguments as in ``sfplus_kernels.AdamC``, without checks.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        normalized: bool = True,
        max_lr: float | None = None,
        row_norm: float | None = None,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "normalized": normalized,
            "max_lr": max_lr,
            "maximize": maximize,
            "row_norm": row_norm,
        }
        super().__init__(params, per_group)

    def step_one(self, p: Tensor, g: Tensor, group: dict[str, Any], decay: float) -> None:
        """p <- p - gamma (m_hat / (sqrt(v_hat) + eps) + decay p)"""
        state, gamma, (beta1, beta2) = self.state[p], float(group["lr"]), group["betas"]
        m = buffer(state, "exp_avg", p).mul_(beta1).add_(g, alpha=1 - beta1)
        v = buffer(state, "exp_avg_sq", p).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m_hat, v_hat = m / (1 - beta1 ** state["step"]), v / (1 - beta2 ** state["step"])
        p.sub_(m_hat / (v_hat.sqrt() + group["eps"]) + decay * p, alpha=gamma)


class AdamWReference(AdamCReference):
    """``AdamCReference`` without the correction."""

    def __init__(self, params: Any, lr: float = 1e-3, **more: Any) -> None:
        super().__init__(params, lr, normalized=False, **more)
