"""SGD with momentum as torch has it, and the corrected decay (arXiv 2506.02285), for reading and testing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfplus_kernels.reference.plain import PlainReference


class SGDReference(PlainReference):
    """The oracle of the tests and the plain peer of the benchmarks: simplest code.

    Arguments as in ``sfplus_kernels.SGD``, without checks.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        normalized: bool = False,
        max_lr: float | None = None,
        row_norm: float | None = None,
        maximize: bool = False,
    ) -> None:
        per_group = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "normalized": normalized,
            "max_lr": max_lr,
            "maximize": maximize,
            "row_norm": row_norm,
        }
        super().__init__(params, per_group)

    def step_one(self, p: Tensor, g: Tensor, group: dict[str, Any], decay: float) -> None:
        """m <- momentum m + (1 - dampening) (g + decay p), all of the first one;  p <- p - gamma m"""
        u = g = g + decay * p
        momentum, state = group["momentum"], self.state[p]
        if momentum > 0:
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(momentum).add_(g, alpha=1 - group["dampening"])
            else:
                state["momentum_buffer"] = g.clone()
            u = state["momentum_buffer"]
            u = g + momentum * u if group["nesterov"] else u
        p.sub_(u, alpha=float(group["lr"]))
