"""The functional form of a step, and the only place where tensors are checked.

``Engine`` holds what one optimizer needs beside its per-tensor state: the fp64 run state, the chosen
backend and its plan. It turns (entries, hyperparameters, loss) into ``reduce``, ``finalize``, ``update``, and
gives each pass a range in the profiler.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled

from sfplus_kernels.backends.capture import (
    HostStock,
    capturing,
    check_not_capturing,
    check_recordable,
)
from sfplus_kernels.backends.contract import Entry, RunState
from sfplus_kernels.backends.layout import Global, Group, Hyper, Move, Scalar, TensorCoef
from sfplus_kernels.backends.registry import select
from sfplus_kernels.collective import Buffers, Collective
from sfplus_kernels.sharding import holds_sums, local, plain

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STATE_TENSORS = ("exp_avg", "exp_avg_sq", "displacement")

__all__ = [
    "Engine",
    "Entry",
    "Move",
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
        TypeError: a dtype other than float64, float32, bfloat16, float16, or a DTensor of sums.
        ValueError: several devices, one piece of memory under two parameters, or no memory.
    """
    seen: dict[int, int] = {}
    for index, param in enumerate(params):
        if param.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"parameter {index} has dtype {param.dtype}; expected one of {_names()}. "
                "Leave it out of the optimizer, or convert the model with model.to(dtype)"
            )
        if holds_sums(param):
            raise TypeError(
                f"parameter {index} is a DTensor with the placements {param.placements}; expected "  # type: ignore[attr-defined]
                "shards or replicas: redistribute it"
            )
        if param.layout is not torch.strided:
            raise TypeError(f"parameter {index} has layout {param.layout}; expected a dense tensor")
        if param.device != params[0].device:
            raise ValueError(
                f"parameters are on several devices: {params[0].device} and {param.device} "
                f"(parameter {index}). The step size is one number for all of them, formed on one "
                "device: move the model to one device"
            )
        part = local(param)
        if part.numel() > 0:
            _check_memory(part, f"parameter {index}")
            other = seen.setdefault(part.data_ptr(), index)
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
    if grad.shape != param.shape or grad.device != param.device:
        raise ValueError(
            f"the gradient of parameter {index} has shape {tuple(grad.shape)} on {grad.device}; "
            f"expected {tuple(param.shape)} on {param.device}, as the parameter. Was the parameter "
            "replaced after backward()? Call zero_grad() and run backward() again"
        )
    _check_memory(grad, f"the gradient of parameter {index}")


def _check_memory(tensor: Tensor, what: str) -> None:
    if tensor.numel() > 0 and tensor.data_ptr() == 0:
        raise ValueError(
            f"{what} has the shape {tuple(tensor.shape)} but no memory: its storage was freed, or it was "
            "given a DTensor as its data. Make a new optimizer of the tensors that are trained, or step "
            "while they are in memory"
        )


def check_loss(loss: object) -> float | Tensor:
    """``loss`` as a float or a 0-dim real tensor; never waits for the device.

    Raises:
        TypeError: not a number.
        ValueError: a tensor with dimensions.
    """
    loss = plain(loss)
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


NO_RANGE = nullcontext()


def profiled(name: str) -> AbstractContextManager[Any]:
    """A range of that name in torch's profiler (and in NVTX, if it emits that); nothing without one."""
    if _profiler_enabled():
        return torch.profiler.record_function(f"sfplus_kernels::{name}")
    return NO_RANGE


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
        self._buffers: Buffers | None = None
        self._unusual: set[Global] = set()  # figures that were written for one step only
        # what CUDA graphs read: the plans of recorded steps, and the hyperparameters that they send again
        self._recorded: list[object] = []
        pin = device.type == "cuda"
        self._host_hyper = HostStock(self.run.hyper.shape, torch.float64, pin)
        self._host_settings = HostStock(self.run.settings.shape, torch.float64, pin)

    def figures(self) -> Tensor:
        """A copy of the run state: those of ``Global``, then a row of ``Group`` for each group."""
        return torch.cat([self.run.globals, self.run.groups.flatten()])

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

    def set_gradients(self, plan: object, gradients: Sequence[Tensor], *, moved: bool) -> None:
        """Bring this step's gradients to ``plan``; ``moved`` if they are elsewhere than at the last."""
        self._backend.set_gradients(plan, gradients, moved=moved)

    def hand_in(self, loss: float | Tensor | None, scaling: Scaling) -> None:
        """Write what the step has to know beside the gradients: the loss, if the algorithm needs it."""
        if loss is not None:
            self._write_figure(Global.FUNCTION_VALUE, loss)
        for index, value, usual in (
            (Global.GRAD_SCALE, scaling.grad_scale, 1.0),
            (Global.CLIP_COEF, scaling.clip_coef, 1.0),
            (Global.FOUND_INF, scaling.found_inf, 0.0),
        ):
            if value is not None:
                value = plain(value)
                check_recordable(index.name.lower(), value, self.device)
                self._write_figure(index, value)
                self._unusual.add(index)
            elif index in self._unusual:
                self._write_figure(index, usual)
                self._unusual.remove(index)

    def reduce(self, plan: object, *, with_e: bool) -> Tensor:
        """Partial sums over the gradients that ``plan`` was told of, (n, len(Sum)); see the contract.

        Args:
            with_e: form sum g e too, for a Polyak step.
        """
        self._keep_if_recorded(plan)
        with profiled("reduce"):
            return self._backend.reduce(plan, with_e=with_e)

    def share(self, collective: Collective, partials: Tensor, has_gradient: bool) -> Tensor:
        """The sums over all processes, (1, len(Sum)); the loss that was handed in becomes that of all."""
        if self._buffers is None:
            self._buffers = Buffers(collective, self.device)
        self._unusual.add(Global.FOUND_INF)
        with profiled("all_reduce"):
            return collective.all_reduce(partials, self.run.globals, has_gradient, self._buffers)

    def finish(self, plan: object, partials: Tensor | None) -> None:
        """Finalize and update, without waiting for the device.

        Args:
            plan: made from the tensors that have a gradient, and told where these are.
            partials: from ``reduce``, or None if the step has no sums.
        """
        self._keep_if_recorded(plan)
        with profiled("finalize"):
            self._backend.finalize(plan, self.run, partials)
        with profiled("update"):
            self._backend.update(plan, self.run)

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
        with profiled("interpolate"):
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
