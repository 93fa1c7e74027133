"""AdamC: AdamW with the decay corrected ("Why Gradients Rapidly Increase Near the End of Training")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfplus_kernels.core.plain import check_decay_peak
from sfplus_kernels.core.plain_adam import PlainAdam


class AdamC(PlainAdam):
    r"""``AdamW`` with its decay times gamma / gamma_max where a normalisation follows (arXiv 2506.02285).

    A layer whose output is normalised has a gradient that is inversely proportional to its weights' norm, and
    that norm settles where decay and steps balance: with a decay that falls with gamma alone, the balance
    moves as the schedule ends, and the gradient grows. With gamma^2 it stays.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused:
            as in ``AdamW``.
        normalized: whether a normalisation (LayerNorm, BatchNorm, RMSNorm) follows what these tensors make.
            True corrects the decay; set it to False in the groups of the others, such as the last layer
            and the embedding.
        max_lr: gamma_max, the largest learning rate of the schedule. None is the largest so far: the decay
            is then not corrected during a warmup. ``OneCycleLR`` sets it.
        row_norm: as in ``AdamW``.
        max_grad_norm, skip_nonfinite, process_group, shard_group, state_format, rounding_seed, backend: as in
            ``AdamW``.

    Raises:
        TypeError, ValueError: as in ``AdamW``; ``lr`` above ``max_lr``.
        RuntimeError: the named backend is unavailable; the message says why.

    State dicts of ``torch.optim.AdamW`` are loaded; the largest learning rate so far is then the larger one
    of their ``lr`` and ``initial_lr``, which torch's schedulers write.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        normalized: bool = True,
        max_lr: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        process_group: Any = None,
        shard_group: Any = None,
        row_norm: float | None = None,
        state_format: str = "float32",
        rounding_seed: int = 0,
        backend: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "normalized": normalized,
            "max_lr": max_lr,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "max_grad_norm": max_grad_norm,
            "skip_nonfinite": skip_nonfinite,
            "row_norm": row_norm,
            "state_format": state_format,
            "rounding_seed": rounding_seed,
        }
        super().__init__(
            params, defaults, backend, process_group=process_group, shard_group=shard_group
        )

    def decay_peak(self, group: Mapping[str, Any]) -> float:
        """``layout.Hyper.DECAY_PEAK``"""
        return check_decay_peak(group)
