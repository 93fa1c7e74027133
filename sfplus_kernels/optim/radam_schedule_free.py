"""Schedule-Free RAdam (arXiv 2405.15682 with the rectification of arXiv 1908.03265)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfplus_kernels.contract.layout import Hyper, Rule
from sfplus_kernels.core.given_lr import GivenLrOptimizer
from sfplus_kernels.core.hyperparameters import check_betas, check_lr, check_number
from sfplus_kernels.core.modes import ScheduleFreeOptimizer


class RAdamScheduleFree(ScheduleFreeOptimizer, GivenLrOptimizer):
    r"""Schedule-Free RAdam: no schedule, and no warmup either (upstream class ``RAdamScheduleFree``).

    RAdam's rectification (arXiv 1908.03265) takes the place of the warmup: gamma is ``lr`` times a factor
    that grows to 1. In the first steps, while the moving average of the second moment is too short
    (rho_t <= 4), nothing moves, or with ``silent_sgd_phase=False`` the step is one of SGD. Call ``train()``
    before training and ``eval()`` before evaluating or saving. One step moves 28 bytes per float32
    parameter and keeps 8 bytes of state.

    Args:
        params: parameters or groups; float64, float32, bfloat16 or float16, all on one device. bfloat16
            and float16 ones get a float32 ``master_param`` that holds y.
        lr: learning rate, at least 0; may be a 0-dim tensor.
        betas: beta of Schedule-Free, in [0, 1], and the decay of Adam's second moment, in [0, 1).
        eps: added to the denominator of Adam, above 0.
        weight_decay: decoupled coefficient, applied at y and multiplied by the learning rate.
        r: power of the step in the averaging weights.
        weight_lr_power: power of the largest learning rate so far in the averaging weights, at least 0.
        foreach: accepted for upstream's sake; has no effect.
        silent_sgd_phase: stand still while gamma is not rectified, instead of steps of SGD.
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

    The rectification counts the group's steps, the bias correction each tensor's own: a first gradient
    that comes late does not take a step of up to 1 / sqrt(1 - beta2) times ``lr``. Without
    ``skip_nonfinite`` a NaN in a gradient is not caught.
    """

    rule = Rule.RECTIFIED

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        silent_sgd_phase: bool = True,
        *,
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
            "r": r,
            "weight_lr_power": weight_lr_power,
            "foreach": foreach,
            "silent_sgd_phase": silent_sgd_phase,
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
            beta2=beta2,
            eps=check_number("eps", group["eps"], 0, open_low=True),
            weight_decay=check_number("weight_decay", group["weight_decay"], 0),
            r=check_number("r", group["r"]),
            weight_lr_power=check_number("weight_lr_power", group["weight_lr_power"], 0),
            silent_sgd_phase=float(bool(group["silent_sgd_phase"])),
        )

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Adam's second moment and e."""
        return ("exp_avg_sq", "displacement")

    def lr_factor(self, group: Mapping[str, Any]) -> float:
        """The rectification; before it begins 0, or 1 without a silent phase."""
        step, beta2 = group["k"] + 1, group["betas"][1]
        beta2_t = beta2**step
        rho_inf = 2 / (1 - beta2) - 1
        rho_t = rho_inf - 2 * step * beta2_t / (1 - beta2_t)
        if rho_t <= 4:
            return 0.0 if group["silent_sgd_phase"] else 1.0
        ratio = (rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)
        return math.sqrt(ratio)
