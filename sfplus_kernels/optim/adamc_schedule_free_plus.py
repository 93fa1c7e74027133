"""ScheduleFree+: AdamC with Schedule-Free averaging and a Polyak step size (arXiv 2605.19095)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfplus_kernels.contract.layout import Hyper, Rule, Setting
from sfplus_kernels.core.hyperparameters import (
    check_betas,
    check_lr,
    check_max_grad_norm,
    check_max_lr,
    check_number,
    check_sf_beta1,
    check_steps,
)
from sfplus_kernels.core.modes import ScheduleFreeOptimizer
from sfplus_kernels.core.polyak import PolyakOptimizer
from sfplus_kernels.core.shared_step import SharedStep


class AdamCScheduleFreePlus(ScheduleFreeOptimizer, PolyakOptimizer):
    r"""ScheduleFree+ (arXiv 2605.19095; upstream class ``AdamCScheduleFreePlusPaper``).

    Trains without a learning-rate schedule: the step size ``gamma = min(lr * polyak_lr, max_lr)`` comes
    from the loss and the gradients (a Polyak step), and the average x of the iterates is what is
    evaluated and saved. The equations are in docs/algorithm.md.

    Call ``train()`` before training, ``step(loss=loss)`` after ``backward()``, ``eval()`` before
    evaluating or saving. A step with a NaN or an Inf in the loss or in any gradient changes nothing but
    ``metrics()["skipped_steps"]``; so does one with a gradient so large that the sum of squares
    overflows.

    Args:
        params: parameters or groups; float64, float32, bfloat16 or float16, all on one device. bfloat16
            and float16 ones get a float32 ``master_param`` that holds y.
        lr: factor on the Polyak step (default 1.0; models of about 1M parameters need well under 1,
            because the Polyak step grows like one over the square root of the number of parameters).
            May be a 0-dim tensor. Floored at ``eps``.
        betas: decay of Adam's first and second moment, in [0, 1). 0.75-0.9 for the first is what large
            batches need.
        sf_beta1: Schedule-Free momentum beta, in [0, 1] (below 1 when annealed).
        eps: added to the denominator of Adam; also the floor of ``lr``. Above 0.
        weight_decay: decoupled coefficient, applied at y and multiplied by gamma^2 (AdamC): useful
            values are 5 to 50, not 0.01.
        r: power of the step in the averaging weights; 1 or 2 for long runs.
        polyak_beta: decay of the EMA of the gradient's L1 norm, in [0, 1); 0 is no averaging.
        c_warmup: steps in which x simply follows z; about twice the learning-rate warmup.
        sf_beta1_anneal_steps: steps over which beta goes from ``sf_beta1`` to ``sf_beta1_max``; 0 is off.
        sf_beta1_max: beta at the end of the annealing, in [0, 1] (below 1 when annealed).
        weight_lr_power: power of the largest gamma so far in the averaging weights.
        warmup_steps: gamma is multiplied by min(1, (k + 1) / warmup_steps); 0 is off.
        max_lr: cap on ``lr * polyak_lr``, before the warmup, so that gamma is never above it. The peak
            learning rate that AdamW would have keeps a run from running away. None is no cap.
        f_star: the loss that cannot be beaten; the Polyak step aims at it.
        maximize: ascend, towards an ``f_star`` above the objective.
        max_grad_norm: clip to this L2 norm over all gradients, as ``torch.nn.utils.clip_grad_norm_``
            does, but without writing them or a pass of its own; gamma is still computed from the unclipped
            gradients. None is off.
        process_group: the processes that train this model; None is torch.distributed's default group,
            where it is initialised. The loss and the sums over the gradients are those of all of them,
            added up in one ``all_reduce`` per step, which every process must join.
        shard_group: the processes among which the parameters are divided, where these are plain tensors
            (ZeroRedundancyOptimizer, FSDP1's flat parameters); None where each process holds all.
        loss_reduce: "mean" or "sum" of the losses of the processes; None if they are the same already.
        shared_step: makes the steps of several optimizers those of one; see ``SharedStep``.
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

    A parameter whose first gradient comes late has its own bias correction, but is averaged with its
    group's weight: give layers that are unfrozen later a group of their own.
    """

    shared_arguments = (
        *PolyakOptimizer.shared_arguments,
        "sf_beta1",
        "sf_beta1_max",
        "sf_beta1_anneal_steps",
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        sf_beta1: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0,
        polyak_beta: float = 0,
        c_warmup: int = 0,
        sf_beta1_anneal_steps: int = 0,
        sf_beta1_max: float = 0.965,
        weight_lr_power: float = 2,
        *,
        warmup_steps: int = 0,
        max_lr: float | None = None,
        f_star: float = 0.0,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        process_group: Any = None,
        shard_group: Any = None,
        loss_reduce: str | None = "mean",
        shared_step: SharedStep | None = None,
        row_norm: float | None = None,
        state_format: str = "float32",
        rounding_seed: int = 0,
        backend: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "sf_beta1": sf_beta1,
            "eps": eps,
            "weight_decay": weight_decay,
            "r": r,
            "polyak_beta": polyak_beta,
            "c_warmup": c_warmup,
            "sf_beta1_anneal_steps": sf_beta1_anneal_steps,
            "sf_beta1_max": sf_beta1_max,
            "weight_lr_power": weight_lr_power,
            "warmup_steps": warmup_steps,
            "max_lr": max_lr,
            "f_star": f_star,
            "maximize": maximize,
            "max_grad_norm": max_grad_norm,
            "row_norm": row_norm,
            "state_format": state_format,
            "rounding_seed": rounding_seed,
        }
        super().__init__(
            params,
            defaults,
            backend,
            process_group=process_group,
            shard_group=shard_group,
            loss_reduce=loss_reduce,
            shared_step=shared_step,
        )

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """A row of ``layout.Hyper``."""
        beta1, beta2 = check_betas(group["betas"])
        return Hyper.row(
            lr=check_lr(group["lr"]),
            sf_beta1=check_sf_beta1(group["sf_beta1"], open_high=_annealed(group)),
            beta1=beta1,
            beta2=beta2,
            eps=check_number("eps", group["eps"], 0, open_low=True),
            weight_decay=check_number("weight_decay", group["weight_decay"], 0),
            r=check_number("r", group["r"]),
            c_warmup=check_steps("c_warmup", group["c_warmup"]),
            warmup_steps=check_steps("warmup_steps", group["warmup_steps"]),
            weight_lr_power=check_number("weight_lr_power", group["weight_lr_power"]),
            max_lr=check_max_lr(group["max_lr"]),
        )

    def settings_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The values of ``layout.Setting``."""
        anneal_steps = check_steps("sf_beta1_anneal_steps", group["sf_beta1_anneal_steps"])
        return Setting.row(
            rule=Rule.POLYAK,
            sf_beta1_max=check_number(
                "sf_beta1_max", group["sf_beta1_max"], 0, 1, open_high=anneal_steps > 0
            ),
            sf_beta1_anneal_steps=anneal_steps,
            polyak_beta=check_number("polyak_beta", group["polyak_beta"], 0, 1, open_high=True),
            f_star=check_number("f_star", group["f_star"]),
            grad_sign=-1.0 if group["maximize"] else 1.0,
            max_grad_norm=check_max_grad_norm(group["max_grad_norm"]),
        )

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Both moments and e."""
        return ("exp_avg", "exp_avg_sq", "displacement")

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """eps."""
        return float(group["eps"])

    def beta_of_y(self, group: Mapping[str, Any]) -> float:
        """beta_k of the last step, as ``finalize`` forms it."""
        anneal_steps, k = group["sf_beta1_anneal_steps"], max(group["k"] - 1, 0)
        if not anneal_steps > 0:
            return super().beta_of_y(group)
        s = min(k / anneal_steps, 1)
        ends = math.log1p(-group["sf_beta1"]), math.log1p(-group["sf_beta1_max"])
        return 1 - math.exp((1 - s) * ends[0] + s * ends[1])


def _annealed(group: Mapping[str, Any]) -> bool:
    """Then beta must stay below 1: there is no logarithm of 1 - 1."""
    return check_steps("sf_beta1_anneal_steps", group["sf_beta1_anneal_steps"]) > 0
