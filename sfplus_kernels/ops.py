"""The functional form of a step, and the only place where tensors are checked.

``Engine`` holds what one optimizer needs beside its per-tensor state: the fp64 run state, the chosen
backend and its plan. It turns (entries, hyperparameters, loss) into ``reduce``, ``finalize``, ``update``.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfplus_kernels.backends.capture import (
    HostStock,
    capturing,
    check_not_capturing,
    check_recordable,
)
from sfplus_kernels.backends.contract import Entry, RunState
from sfplus_kernels.backends.layout import Global, Group, Hyper, Move, Scalar, TensorCoef
from sfplus_kernels.backends.registry import select
from sfplus_kernels.collective import Collective

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STATE_TENSORS = ("exp_avg", "exp_avg_sq", "displacement")

__all__ = [
    "Engine",
    "Entry",
    "Move",
    "Passes",
    "RunState",
    "Scaling",
    "capturing",
    "check_gradient",
    "check_loss",
    "check_not_capturing",
    "check_parameters",
    "check_recordable",
    "needs_master",
    "state_dtype",
]


def state_dtype(param: Tensor) -> torch.dtype:
    """dtype of a parameter's state and of the arithmetic on it: float64 for float64, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def needs_master(param: Tensor) -> bool:
    """Whether y is kept in a float32 ``master_param`` because the parameter itself is too coarse."""
    return param.dtype != state_dtype(param)


def check_parameters(params: Sequence[Tensor]) -> torch.device:
    """The one device of ``params``.

    Raises:
        TypeError: a dtype other than float64, float32, bfloat16, float16, or a DTensor.
        ValueError: several devices, or one piece of memory under two parameters.
    """
    seen: dict[int, int] = {}
    for index, param in enumerate(params):
        if param.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"parameter {index} has dtype {param.dtype}; expected one of {_names()}. "
                "Leave it out of the optimizer, or convert the model with model.to(dtype)"
            )
        if hasattr(param, "device_mesh"):
            raise TypeError(
                f"parameter {index} is a DTensor, which this version does not support; "
                "use an optimizer on plain tensors (single process, or DDP with an averaged loss)"
            )
        if param.layout is not torch.strided:
            raise TypeError(f"parameter {index} has layout {param.layout}; expected a dense tensor")
        if param.device != params[0].device:
            raise ValueError(
                f"parameters are on several devices: {params[0].device} and {param.device} "
                f"(parameter {index}). The step size is one number for all of them, formed on one "
                "device: move the model to one device"
            )
        if param.numel() > 0:
            other = seen.setdefault(param.data_ptr(), index)
            if other != index:
                raise ValueError(
                    f"parameters {other} and {index} share their memory, so a step would move it "
                    "twice; pass a tied parameter once, as model.parameters() does"
                )
    return params[0].device


def check_gradient(param: Tensor, grad: Tensor, index: int) -> None:
    """Raise TypeError or ValueError if ``grad`` cannot be used; ``index`` names the parameter."""
    if grad.layout is not torch.strided:
        raise TypeError(
            f"the gradient of parameter {index} is sparse (layout {grad.layout}); expected a dense "
            "one. Use sparse=False in the embedding, or param.grad = param.grad.to_dense()"
        )
    if grad.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"the gradient of parameter {index} has dtype {grad.dtype}; expected one of {_names()}"
        )
    if hasattr(grad, "device_mesh"):
        raise TypeError(
            f"the gradient of parameter {index} is a DTensor; this version takes plain tensors"
        )
    if grad.shape != param.shape or grad.device != param.device:
        raise ValueError(
            f"the gradient of parameter {index} has shape {tuple(grad.shape)} on {grad.device}; "
            f"expected {tuple(param.shape)} on {param.device}, as the parameter. Was the parameter "
            "replaced after backward()? Call zero_grad() and run backward() again"
        )


def check_loss(loss: object) -> float | Tensor:
    """``loss`` as a float or a 0-dim real tensor; never waits for the device.

    Raises:
        TypeError: not a number.
        ValueError: a tensor with dimensions.
    """
    if isinstance(loss, Tensor):
        if loss.dim() != 0:
            raise ValueError(
                f"the loss has shape {tuple(loss.shape)}; expected a scalar (0-dim tensor or float): "
                "pass loss.mean(), or loss.squeeze() if it holds one element"
            )
        if loss.dtype.is_complex or loss.dtype == torch.bool:
            raise TypeError(f"the loss has dtype {loss.dtype}; expected a real number")
        return loss.detach()
    if isinstance(loss, numbers.Real) and not isinstance(loss, bool):
        return float(loss)
    raise TypeError(
        f"the loss is a {type(loss).__name__}; expected a float or a 0-dim tensor, the value that "
        "backward() was called on"
    )


class Scaling(NamedTuple):
    """What was done to this step's gradients, beside what the optimizer does itself."""

    grad_scale: float | Tensor | None = None  # they are so many times the true ones
    found_inf: float | Tensor | None = None  # not 0: one of them is not finite, skip the step
    clip_coef: float | Tensor | None = None  # by which they were clipped
    has_gradient: bool = True  # whether there is any in this process


class Passes(NamedTuple):
    """The passes over memory of one step."""

    sums: bool  # whether it begins with ``reduce``
    with_e: bool  # whether that also forms sum g e
    collective: Collective | None  # with whom the sums are added up, if not with oneself
    has_gradient: bool  # whether there is any in this process


class Engine:
    """Run state, backend and plan of one optimizer on one device.

    Args:
        backend: name of a backend, or None for the best one.
        device: where all parameters are.
        n_groups, n_params: sizes of the run state.
    """

    def __init__(
        self, backend: str | None, device: torch.device, n_groups: int, n_params: int
    ) -> None:
        self.backend_name, self._backend = select(backend, device)
        self.device = device
        self.run = RunState.zeros(n_groups, n_params, device)
        # gamma of each group as of the last step: waited for only when one of them is read
        self.scheduled_lr = list(self.run.groups[:, Group.SCHEDULED_LR])
        self._hyper: list[tuple[float, ...]] | None = None
        self._settings: tuple[float, ...] | None = None
        self._unusual: set[Global] = set()  # figures that were written for one step only
        # what CUDA graphs read: the plans of recorded steps, and the hyperparameters that they send again
        self._recorded: list[object] = []
        pin = device.type == "cuda"
        self._host_hyper = HostStock(self.run.hyper.shape, torch.float64, pin)
        self._host_settings = HostStock(self.run.settings.shape, torch.float64, pin)

    def set_hyperparameters(
        self,
        hyper: Sequence[Sequence[float]],
        settings: Sequence[float],
        lr_tensors: Sequence[tuple[int, Tensor]],
    ) -> None:
        """Rows as in ``layout.Hyper`` and ``layout.Setting``; sent only when they changed.

        A CUDA graph sends those of its capture at every replay; once there is one, so does every step.
        ``lr_tensors`` are (group, learning rate) for those that live on the device: copied there.
        """
        rows = [tuple(row) for row in hyper]
        always = bool(self._recorded) or capturing(self.device)
        if always or rows != self._hyper:
            self._write(self.run.hyper, rows, self._host_hyper)
            self._hyper = rows
        if always or tuple(settings) != self._settings:
            self._write(self.run.settings, settings, self._host_settings)
            self._settings = tuple(settings)
        for group, lr in lr_tensors:
            self.run.hyper[group, Hyper.LR].copy_(lr)

    def plan(self, entries: Sequence[Entry]) -> object:
        """The backend's plan for ``entries``, to be kept while their addresses stay."""
        return self._backend.plan(entries, self.device)

    def set_gradients(self, plan: object, gradients: Sequence[Tensor]) -> None:
        """Tell ``plan`` where this step's gradients are."""
        self._backend.set_gradients(plan, gradients)

    def announce(
        self,
        loss: float | Tensor | None,
        *,
        check_finite: bool,
        scaling: Scaling,
        collective: Collective | None,
    ) -> Passes:
        """Tell the device what comes with this step's gradients; never waits for it.

        Args:
            loss: float or 0-dim tensor, if the algorithm needs it and sums.
            check_finite: without a loss, look at the gradients all the same: to clip them, and to skip the
                step if one is not finite.
            scaling: what was done to the gradients.
            collective: with whom sums and loss are added up, if not with oneself.

        Returns:
            What is left of the step, for ``run_passes``.
        """
        if loss is not None:
            self._write_figure(Global.FUNCTION_VALUE, loss)
        for index, value, usual in (
            (Global.GRAD_SCALE, scaling.grad_scale, 1.0),
            (Global.CLIP_COEF, scaling.clip_coef, 1.0),
            (Global.FOUND_INF, scaling.found_inf, 0.0),
        ):
            if value is not None:
                check_recordable(index.name.lower(), value, self.device)
                self._write_figure(index, value)
                self._unusual.add(index)
            elif index in self._unusual:
                self._write_figure(index, usual)
                self._unusual.remove(index)
        if collective is not None:
            self._unusual.add(Global.FOUND_INF)
        sums = loss is not None or check_finite
        return Passes(sums, loss is not None, collective, scaling.has_gradient)

    def run_passes(self, plan: object, run: RunState, passes: Passes) -> None:
        """The passes of one step, without waiting for the device.

        Args:
            plan: made from the tensors that have a gradient.
            run: ``self.run``, or a copy of it that belongs to the tensors of the plan.
            passes: what ``announce`` returned.
        """
        self._keep_if_recorded(plan)
        partials = None
        if passes.sums:
            partials = self._backend.reduce(plan, with_e=passes.with_e)
            if passes.collective is not None:
                partials = passes.collective.all_reduce(partials, run.globals, passes.has_gradient)
        self._backend.finalize(plan, run, partials)
        self._backend.update(plan, run)

    def _write_figure(self, index: Global, value: float | Tensor) -> None:
        slot = self.run.globals[index]
        on_host = isinstance(value, Tensor) and value.device.type == "cpu"
        if isinstance(value, Tensor) and not (on_host and self.device.type != "cpu"):
            slot.copy_(value.detach().reshape(()))
        else:
            slot.fill_(float(value))

    def interpolate(self, plan: object, move: Move) -> None:
        """Move the parameters of ``plan`` between y, x and z."""
        self._keep_if_recorded(plan)
        self._backend.interpolate(plan, self.run, move)

    def shift(self, plan: object, betas: Tensor) -> None:
        """y of the tensors of ``plan`` from b to ``betas``, float64, one for each parameter."""
        b = self.run.tensors[:, Scalar.Y_BETA]
        torch.sub(b, betas, out=self.run.tensor_coefs[:, TensorCoef.E_TO_Y])
        b.copy_(betas)
        self.interpolate(plan, Move.SHIFT)

    def absorb_z(self, plan: object) -> None:
        """After another optimizer's step on z: x follows it, and y and e are formed again."""
        self._backend.finalize(plan, self.run, None)
        self.interpolate(plan, Move.ABSORB_Z)

    def put_back(self, plan: object) -> None:
        """As ``absorb_z``, but x stays and nothing counts."""
        self.run.globals[Global.SKIP] = 1
        self.interpolate(plan, Move.ABSORB_Z)

    def _keep_if_recorded(self, plan: object) -> None:
        if capturing(self.device) and not any(plan is kept for kept in self._recorded):
            self._recorded.append(plan)

    def _write(self, buffer: Tensor, values: Iterable, stock: HostStock) -> None:
        host = torch.tensor(values, dtype=torch.float64)
        if capturing(self.device):
            host = stock.give(host)
        elif self.device.type == "cuda":
            host = host.pin_memory()
            stock.refill()
        buffer.copy_(host, non_blocking=True)


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
