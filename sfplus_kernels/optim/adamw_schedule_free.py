"""Schedule-Free AdamW ("The Road Less Scheduled", arXiv 2405.15682)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfplus_kernels.contract.layout import Hyper
from sfplus_kernels.core.given_lr import GivenLrOptimizer
from sfplus_kernels.core.hyperparameters import (
    check_betas,
    check_decoupling_c,
    check_lr,
    check_number,
    check_steps,
)
from sfplus_kernels.core.modes import ScheduleFreeOptimizer


class AdamWScheduleFree(ScheduleFreeOptimizer, GivenLrOptimizer):
    r"""Schedule-Free AdamW (arXiv 2405.15682; upstream class ``schedulefree.AdamWScheduleFree``).

    No learning-rate schedule beside the warmup. Call ``train()`` before training and ``eval()`` before
    evaluating or saving. One step moves 28 bytes per float32 parameter and keeps 8 bytes of state (36 and
    12 with ``inner_momentum``).

    Args:
        params: parameters or groups; float64, float32, bfloat16 or float16, all on one device. bfloat16
            and float16 ones get a float32 ``master_param`` that holds y.
        lr: learning rate, at least 0; may be a 0-dim tensor.
        betas: beta of Schedule-Free, in [0, 1], and the decay of Adam's second moment, in [0, 1).
        eps: added to the denominator of Adam, above 0.
        weight_decay: decoupled coefficient, applied at y and multiplied by the learning rate.
        warmup_steps: the learning rate is multiplied by min(1, (k + 1) / warmup_steps); 0 is off.
        r: power of the step in the averaging weights.
        weight_lr_power: power of the largest learning rate so far in the averaging weights, at least 0.
        foreach: accepted for upstream's sake; has no effect.
        inner_momentum: decay of Adam's first moment, in [0, 1); 0 keeps none. A setting of the whole
            run: it cannot go from or to 0 once there is state.
        decoupling_c: C of refined Schedule-Free (arXiv 2507.09846), above 0: the averaging weight c becomes
            min(c (1 - beta) C, 1), so that the width of the average depends on C alone, and beta is a
            momentum. 1 / (1 - beta) changes nothing, nor does None; more is a shorter average. Upstream has
            none.
        maximize: ascend.
        max_grad_norm: clip to this L2 norm over all gradients, as ``torch.nn.utils.clip_grad_norm_``
            does, but without writing them; None is off. Looks at all gradients first, as the next one.
        skip_nonfinite: look at all gradients first (4 bytes more of traffic per parameter), and let a
            step with a NaN, an Inf or an overflowing sum of squares in them change nothing but
            ``metrics()["skipped_steps"]``.
        process_group, shard_group: with whom the look at the gradients is shared, as in
            ``AdamCScheduleFreePlus``.
        row_norm: the L2 norm that each row of these weights is brought to at every step: a row of a parameter
            with two or more dimensions is ``p[i]``, all that belongs to one output. z is projected; x and y,
            averages of it, are within. With ``state_format="float32"`` only. None leaves the norms alone.
        state_format: "float32", "16bit" for half the state, or "8bit" for a third (docs/memory.md); that of
            float16 parameters stays in float32.
        rounding_seed: of the roundings by chance of these, 0 to 4294967295; the same in all processes.
        backend: "cpu", "cuda", "triton" or "eager"; None takes ``SFPLUS_BACKEND`` or the best available.

    Raises:
        TypeError, ValueError: a hyperparameter out of range, unusable parameters, an unknown backend.
        RuntimeError: the named backend is unavailable; the message says why.

    Unlike upstream, bias corrections count the steps of each tensor: a first gradient that comes late
    does not take a step of up to 1 / sqrt(1 - beta2) times ``lr``. Without ``skip_nonfinite`` a NaN in a
    gradient is not caught.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        inner_momentum: float = 0.0,
        decoupling_c: float | None = None,
        maximize: bool = False,
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
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "foreach": foreach,
            "inner_momentum": inner_momentum,
            "decoupling_c": decoupling_c,
            "maximize": maximize,
            "max_grad_norm": max_grad_norm,
            "skip_nonfinite": skip_nonfinite,
            "row_norm": row_norm,
            "state_format": state_format,
            "rounding_seed": rounding_seed,
        }
        super().__init__(
            params, defaults, backend, process_group=process_group, shard_group=shard_group
        )

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """A row of ``layout.Hyper``."""
        sf_beta1, beta2 = check_betas(group["betas"], first_may_be_one=True)
        return Hyper.row(
            lr=check_lr(group["lr"]),
            sf_beta1=sf_beta1,
            beta1=check_number("inner_momentum", group["inner_momentum"], 0, 1, open_high=True),
            beta2=beta2,
            eps=check_number("eps", group["eps"], 0, open_low=True),
            weight_decay=check_number("weight_decay", group["weight_decay"], 0),
            r=check_number("r", group["r"]),
            warmup_steps=check_steps("warmup_steps", group["warmup_steps"]),
            weight_lr_power=check_number("weight_lr_power", group["weight_lr_power"], 0),
            c_factor=check_decoupling_c(group["decoupling_c"], sf_beta1),
        )

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Adam's second moment and e, and the first moment if there is inner momentum."""
        names = ("exp_avg_sq", "displacement")
        return ("exp_avg", *names) if group["inner_momentum"] > 0 else names
