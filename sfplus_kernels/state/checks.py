"""What is asked of parameters, gradients and a loss before a step, and what is said if it does not hold."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import FLOAT_DTYPES
from sfplus_kernels.processes.sharding import holds_sums, local, plain


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


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
