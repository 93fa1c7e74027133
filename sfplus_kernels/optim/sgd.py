"""SGD with momentum as torch has it, without averaging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfplus_kernels.contract.layout import Hyper, Rule
from sfplus_kernels.core.hyperparameters import check_lr, check_number
from sfplus_kernels.core.plain import PlainOptimizer, check_decay_peak, check_refused

REFUSED = {
    "differentiable": "the step is outside of autograd: leave it off",
}


class SGD(PlainOptimizer):
    r"""``torch.optim.SGD`` on this package's kernels: the same arguments, the same weights to rounding.

    What ``SGDScheduleFree`` is compared with: it wants a learning-rate schedule. Nothing is averaged, and
    there is nothing to switch: ``train()`` and ``eval()`` do nothing. One step moves 20 bytes per float32
    parameter and keeps 4 bytes of state; without momentum 12, and none.

    Args:
        params: parameters or groups; float64, float32, bfloat16 or float16, all on one device. bfloat16
            and float16 ones get a float32 ``master_param`` that holds the weight.
        lr: learning rate, at least 0; may be a 0-dim tensor.
        momentum: m <- momentum m + (1 - dampening) g, in [0, 1), and m = g at first; 0 keeps none. It may be
            changed during training, from and to 0 as well: a tensor's momentum begins at its first step with
            one, and rests, kept as it is, while there is none.
        dampening: in [0, 1].
        weight_decay: coefficient of an L2 penalty: times the weight, it is added to the gradient, and so goes
            into the momentum, as in torch.
        nesterov: step along g + momentum m; without dampening.
        normalized: whether a normalisation (LayerNorm, BatchNorm, RMSNorm) follows what these tensors make.
            True multiplies ``weight_decay`` by gamma / gamma_max, as ``AdamC`` does.
        max_lr: gamma_max, the largest learning rate of the schedule; None is the largest so far.
        differentiable: only False.
        maximize: ascend.
        foreach, fused: accepted for torch's sake; have no effect.
        max_grad_norm, skip_nonfinite, process_group, shard_group: as in ``AdamW``.
        row_norm: the L2 norm that each row of these weights is brought to at every step: a row of a parameter
            with two or more dimensions is ``p[i]``, all that belongs to one output. None leaves them alone.
        state_format: "float32", or "16bit" for half the state, in which nothing is rounded by chance. "8bit"
            is the same here: momentum alone has no unit that 8 bits could count in (docs/memory.md).
        backend: "cpu", "cuda", "triton" or "eager"; None takes ``SFPLUS_BACKEND`` or the best available.

    Raises:
        TypeError, ValueError: a hyperparameter out of range, unusable parameters, an unknown backend.
        RuntimeError: the named backend is unavailable; the message says why.

    State dicts of ``torch.optim.SGD`` are loaded, and it loads those of ``to_upstream_state_dict()``.
    """

    rule = Rule.MOMENTUM
    needed_of_torch = ("lr", "momentum", "dampening", "weight_decay", "nesterov")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        normalized: bool = False,
        max_lr: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        process_group: Any = None,
        shard_group: Any = None,
        row_norm: float | None = None,
        state_format: str = "float32",
        backend: str | None = None,
    ) -> None:
        check_refused({"differentiable": differentiable}, type(self).__name__, REFUSED)
        if nesterov and (momentum == 0 or dampening != 0):  # groups may differ, as in torch
            raise ValueError(
                f"nesterov is True, momentum is {momentum!r} and dampening is {dampening!r}; expected a "
                "momentum above 0 and no dampening"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "normalized": normalized,
            "max_lr": max_lr,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "max_grad_norm": max_grad_norm,
            "skip_nonfinite": skip_nonfinite,
            "row_norm": row_norm,
            "state_format": state_format,
        }
        super().__init__(
            params, defaults, backend, process_group=process_group, shard_group=shard_group
        )

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """A row of ``layout.Hyper``."""
        check_refused(group, type(self).__name__, REFUSED)
        momentum = check_number("momentum", group["momentum"], 0, 1, open_high=True)
        return Hyper.row(
            lr=check_lr(group["lr"]),
            beta1=momentum,
            weight_decay=check_number("weight_decay", group["weight_decay"], 0),
            decay_peak=check_decay_peak(group),
            nesterov=float(bool(group["nesterov"])),
            dampening=check_number("dampening", group["dampening"], 0, 1),
        )

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The momentum, if there is any."""
        return ("momentum_buffer",) if group["momentum"] > 0 else ()
