"""ScheduleFree+: AdamC with Schedule-Free averaging and a Polyak step size (arXiv 2605.19095)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints import upstream
from sfplus_kernels.compiling.tracing import ends_with_its_passes
from sfplus_kernels.contract.layout import Global, Rule
from sfplus_kernels.core.fused import ScheduleFreeOptimizer
from sfplus_kernels.core.hyperparameters import (
    check_betas,
    check_lr,
    check_max_grad_norm,
    check_number,
)
from sfplus_kernels.core.losses import LossReports
from sfplus_kernels.core.shared_step import SharedStep
from sfplus_kernels.engine import engine as ops
from sfplus_kernels.processes.collective import Collective
from sfplus_kernels.state.run import POLYAK_KEYS


class AdamCScheduleFreePlus(ScheduleFreeOptimizer):
    r"""ScheduleFree+ (arXiv 2605.19095; upstream class ``AdamCScheduleFreePlusPaper``).

    Trains without a learning-rate schedule: the step size ``gamma = lr * polyak_lr`` comes from the loss
    and the gradients (a Polyak step), and the average x of the iterates is what is evaluated and saved.
    The equations are in docs/algorithm.md.

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
        backend: "cpu", "cuda", "triton" or "eager"; None takes ``SFPLUS_BACKEND`` or the best available.

    Raises:
        TypeError, ValueError: a hyperparameter out of range, unusable parameters, an unknown backend.
        RuntimeError: the named backend is unavailable; the message says why.

    A parameter whose first gradient comes late has its own bias correction, but is averaged with its
    group's weight: give layers that are unfrozen later a group of their own.
    """

    shared_arguments = (
        "sf_beta1",
        "sf_beta1_max",
        "sf_beta1_anneal_steps",
        "polyak_beta",
        "f_star",
        "maximize",
        "max_grad_norm",
    )
    global_keys = POLYAK_KEYS
    advances_without_gradients = False
    _loss_reports: LossReports | None = None

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
        f_star: float = 0.0,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        process_group: Any = None,
        shard_group: Any = None,
        loss_reduce: str | None = "mean",
        shared_step: SharedStep | None = None,
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
            "f_star": f_star,
            "maximize": maximize,
            "max_grad_norm": max_grad_norm,
        }
        collective = Collective(process_group, shard_group, loss_reduce)
        super().__init__(params, defaults, backend, collective)
        if shared_step is not None:
            shared_step.join(self)
            self._shared_step = shared_step

    def check_group(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """A row of ``layout.Hyper``."""
        beta1, beta2 = check_betas(group["betas"])
        return (
            check_lr(group["lr"]),
            check_number("sf_beta1", group["sf_beta1"], 0, 1, open_high=_annealed(group)),
            beta1,
            beta2,
            check_number("eps", group["eps"], 0, open_low=True),
            check_number("weight_decay", group["weight_decay"], 0),
            check_number("r", group["r"]),
            check_number("c_warmup", group["c_warmup"], 0),
            check_number("warmup_steps", group["warmup_steps"], 0),
            check_number("weight_lr_power", group["weight_lr_power"]),
            0.0,
        )

    def check_settings(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The values of ``layout.Setting``."""
        return (
            Rule.POLYAK,
            check_number("sf_beta1_max", group["sf_beta1_max"], 0, 1, open_high=_annealed(group)),
            check_number("sf_beta1_anneal_steps", group["sf_beta1_anneal_steps"], 0),
            check_number("polyak_beta", group["polyak_beta"], 0, 1, open_high=True),
            check_number("f_star", group["f_star"]),
            -1.0 if group["maximize"] else 1.0,
            check_max_grad_norm(group["max_grad_norm"]),
        )

    def state_tensors(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Both moments and e."""
        return ("exp_avg", "exp_avg_sq", "displacement")

    def figures(self) -> tuple[Global, ...]:
        """All but the mark of a skipped step and what is only handed in."""
        inputs = (Global.SKIP, Global.GRAD_SCALE, Global.CLIP_COEF, Global.FOUND_INF)
        return tuple(figure for figure in Global if figure not in inputs)

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

    def to_upstream_state_dict(self) -> dict[str, Any]:
        """A state dict that upstream's ``AdamCScheduleFreePlusPaper`` loads and continues from.

        Save the parameters with it, in the same mode. Each tensor's own count of steps is lost: upstream
        has one for the group.

        Raises:
            ValueError: ``polyak_beta`` is above 0, where upstream's running mean is another one.
        """
        if any(group["polyak_beta"] > 0 for group in self.param_groups):
            raise ValueError(
                f"polyak_beta is {self.param_groups[0]['polyak_beta']}; expected 0: upstream keeps another "
                "running mean of the gradient's L1 norm and would not continue this run"
            )
        state_dict = upstream.upstream_state_dict(self, with_x_and_y=True)
        for group in state_dict["param_groups"]:
            group.update(grad_l1_ema=0.0, polyak_denom_ema=0.0)
        return state_dict

    @ends_with_its_passes
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float | Tensor] | None = None,
        *,
        loss: float | Tensor | None = None,
        clip_coef: float | Tensor | None = None,
    ) -> float | Tensor | None:
        """One step at the gradients in ``param.grad``.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()``, returns the loss.
            loss: the loss that ``backward()`` was called on: a 0-dim tensor on any device (never waited
                for) or a float. If there is none, the mean of what ``report_loss`` was told since the
                last step.
            clip_coef: the factor, at most 1, by which the gradients were clipped before; the Polyak step
                is then that of the unclipped ones. Not together with ``max_grad_norm``.

        Returns:
            The loss. Without a loss, and only when every ``lr`` is 0, state is allocated
            and nothing else happens (checkpoint loaders do that).

        Raises:
            RuntimeError: in eval mode.
            TypeError, ValueError: no loss, two losses, not a scalar, not a number; unusable gradients.
                Nothing has changed then.
        """
        if closure is None and loss is None:
            loss = self.loss_reports.take()
        if closure is None and loss is None and self._all_lr_zero():
            self._only_create_state()
            return None
        self._check_train_mode()
        if closure is not None:
            if loss is not None:
                raise ValueError("step() got a closure and a loss; pass one of them")
            with torch.enable_grad():
                loss = closure()
        if loss is None:
            raise ValueError(
                "step() got no loss (or the closure returned None); the Polyak step size needs it: "
                "call step(loss=loss), step(closure) with a closure that returns the loss, or "
                "report_loss(optimizer, loss) before step()"
            )
        if clip_coef is not None and self.param_groups[0]["max_grad_norm"] is not None:
            raise ValueError(
                "step() got clip_coef, but max_grad_norm is "
                f"{self.param_groups[0]['max_grad_norm']}: clip in one place, outside or here"
            )
        self._run_step(ops.check_loss(loss), clip_coef=clip_coef)
        if not self._no_gradients:
            for group, gamma in zip(
                self.param_groups, self._get_engine().scheduled_lr, strict=True
            ):
                group["scheduled_lr"] = gamma
        return loss

    @property
    def loss_reports(self) -> LossReports:
        """The losses of the micro-batches since the last step; see ``report_loss``."""
        if self._loss_reports is None:  # also after pickle and deepcopy, which do not take it along
            self._loss_reports = LossReports()
        return self._loss_reports

    def step_func(self, function_value: float | Tensor | None = None) -> float | Tensor | None:
        """Upstream's name for ``step(loss=function_value)``."""
        return self.step(loss=function_value)


def _annealed(group: Mapping[str, Any]) -> bool:
    """Then beta must stay below 1: there is no logarithm of 1 - 1."""
    return check_number("sf_beta1_anneal_steps", group["sf_beta1_anneal_steps"], 0) > 0
