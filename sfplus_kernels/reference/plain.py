"""What the references that average nothing share: weight decay, and its correction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.reference.projection import project_rows


class PlainReference(torch.optim.Optimizer):
    """An algorithm says what one tensor's step is; the rest is here."""

    def __init__(self, params: Any, per_group: dict[str, Any]) -> None:
        super().__init__(params, per_group | {"lr_max": 0.0})

    def step_one(self, p: Tensor, g: Tensor, group: dict[str, Any], decay: float) -> None:
        """One tensor; ``self.state[p]["step"]`` counts its own steps from 1."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step at the gradients that there are."""
        for group in self.param_groups:
            decay = corrected_decay(group)
            for p in group["params"]:
                if p.grad is not None:
                    g = -p.grad if group["maximize"] else p.grad
                    self.state[p].setdefault("step", 0)
                    self.state[p]["step"] += 1
                    self.step_one(p, g, group, decay)
                    project_rows(p, group["row_norm"])


def corrected_decay(group: dict[str, Any]) -> float:
    """lambda, times gamma / gamma_max where a normalisation follows (arXiv 2506.02285); advances lr_max.

    gamma_max is ``max_lr``, or the largest learning rate so far.
    """
    gamma, decay = float(group["lr"]), float(group["weight_decay"])
    group["lr_max"] = max(group["lr_max"], gamma)
    if not group["normalized"]:
        return decay
    gamma_max = group["lr_max"] if group["max_lr"] is None else group["max_lr"]
    return decay * gamma / gamma_max if gamma_max > 0 else 0.0


def buffer(state: dict[str, Any], name: str, p: Tensor) -> Tensor:
    """One that begins with zeros."""
    if name not in state:
        state[name] = torch.zeros_like(p)
    result: Tensor = state[name]
    return result
