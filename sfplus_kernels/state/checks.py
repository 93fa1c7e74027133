"""What is asked of parameters, gradients and a loss before a step, and what is said if it does not hold."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import FLOAT_DTYPES, STATE_FORMATS
from sfplus_kernels.processes.sharding import cuts_rows, holds_sums, local, plain
from sfplus_kernels.state.containers import Containers


def parameters_or_groups(params: Any) -> list[Any]:
    """What an optimizer is given, as a list of at least one parameter.

    Raises:
        TypeError: a model, or a tensor by itself (which may be the ``params`` of a group, as in torch).
        ValueError: nothing.
    """
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            f"got a model ({type(params).__name__}); expected its parameters: pass model.parameters()"
        )
    if isinstance(params, Tensor):
        raise TypeError(
            f"got a lone tensor ({type(params).__name__} of shape {tuple(params.shape)}); expected an "
            "iterable of tensors or of groups, as torch's optimizers do: pass [param]"
        )
    listed: list[Any] = list(params)
    if not any(_has_parameters(p) for p in listed):
        raise ValueError(
            "got an empty parameter list; expected at least one parameter: is it an iterator that "
            "was used up, or a model without parameters?"
        )
    return listed


def _has_parameters(given: Any) -> bool:
    """Whether this is no group, or one that has any; an iterator is not looked into."""
    if not isinstance(given, dict):
        return True
    params = given["params"]
    return isinstance(params, Tensor) or bool(params)


def check_parameters(params: Iterable[tuple[int, Tensor]]) -> None:
    """Check those that a step may touch (``Containers.touched``).

    Raises:
        TypeError: a dtype other than float64, float32, bfloat16, float16, or a DTensor of sums.
        ValueError: several devices, the meta device, one piece of memory under two parameters, or no memory.
    """
    first: Tensor | None = None
    seen: dict[int, int] = {}
    for index, param in params:
        first = param if first is None else first
        if param.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"parameter {index} has dtype {param.dtype}; expected one of {_names()}. "
                "Freeze it with requires_grad_(False), leave it out of the optimizer, or convert the model "
                "with model.to(dtype)"
            )
        if holds_sums(param):
            raise TypeError(
                f"parameter {index} is a DTensor with the placements {param.placements}; expected "  # type: ignore[attr-defined]
                "shards or replicas: redistribute it"
            )
        if param.layout is not torch.strided:
            raise TypeError(f"parameter {index} has layout {param.layout}; expected a dense tensor")
        if param.device != first.device:
            raise ValueError(
                f"parameters are on several devices: {first.device} and {param.device} "
                f"(parameter {index}). The step size is one number for all of them, formed on one "
                "device: move the model to one device"
            )
        if param.device.type == "meta":
            raise ValueError(
                f"parameter {index} is on the meta device, where a tensor has a shape and no values; make "
                "the model real with model.to_empty(device=...), load or initialise its weights, then make "
                "the optimizer"
            )
        part = local(param)
        if part.numel() > 0 and not is_fake(part):
            check_memory(part, f"parameter {index}")
            other = seen.setdefault(part.data_ptr(), index)
            if other != index:
                raise ValueError(
                    f"parameters {other} and {index} share their memory, so a step would move it "
                    "twice; pass a tied parameter once, as model.parameters() does"
                )


def check_containers(containers: Containers) -> None:
    """``check_parameters``, and ValueError for a ``state_format`` that is unknown or cannot be."""
    check_parameters(containers.touched)
    touched = {id(param) for _, param in containers.touched}
    for index, state_format in enumerate(containers.formats):
        if state_format not in STATE_FORMATS:
            *first, last = map(repr, STATE_FORMATS)
            expected = f"{', '.join(first)} or {last}"
            raise ValueError(f"state_format is {state_format!r}; expected {expected}")
        params = containers.groups[index]["params"] if state_format != "float32" else []
        if containers.projected[index]:
            _check_rows(containers.groups[index]["params"], touched)
        if any(p.dtype == torch.float64 and id(p) in touched for p in params):
            raise ValueError(
                f"state_format is {state_format!r}, but a parameter is float64; expected 'float32', which "
                "keeps float64 state for it"
            )
        in_24_bits = state_format == "8bit" and containers.twice_a_step
        if in_24_bits and any(p.dtype == torch.bfloat16 and id(p) in touched for p in params):
            raise ValueError(
                "state_format is '8bit', but a closure form writes y and x into a bfloat16 parameter in turn "
                "and would round it to 24 bits twice a step; expected '16bit' or 'float32', or float32 "
                "parameters"
            )


def _check_rows(params: Iterable[Tensor], touched: set[int]) -> None:
    """Raise ValueError unless the rows of these have a norm that can be kept."""
    for param in params:
        if id(param) not in touched:
            continue
        if param.dim() < 2:
            raise ValueError(
                f"a parameter of shape {tuple(param.shape)} is in a group with a row_norm; expected two "
                "dimensions or more, the first being that of the rows. Put biases and the gains of "
                "normalisations into a group with row_norm=None"
            )
        if cuts_rows(param):
            raise ValueError(
                f"a parameter of shape {tuple(param.shape)} in a group with a row_norm is a DTensor with the "
                f"placements {param.placements}; expected whole rows on each process: "  # type: ignore[attr-defined]
                "replicas, or shards along dimension 0. Divide it that way, or put it into a group with "
                "row_norm=None"
            )


def is_fake(tensor: Tensor) -> bool:
    """Whether it was made under torch's FakeTensorMode: a shape without memory, to estimate a size with."""
    return getattr(tensor, "fake_mode", None) is not None


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
    check_memory(grad, f"the gradient of parameter {index}")


def check_memory(tensor: Tensor, what: str) -> None:
    """Raise ValueError if ``tensor`` has elements beyond its storage, or no memory at all."""
    if not has_memory(tensor):
        raise ValueError(
            f"{what} has the shape {tuple(tensor.shape)} but no memory for it: its storage was freed or made "
            "smaller, or it was given a DTensor as its data. Make a new optimizer of the tensors that are "
            "trained, or step while they are in memory"
        )


def has_memory(tensor: Tensor) -> bool:
    """Whether all elements of ``tensor`` lie in its storage."""
    if tensor.numel() == 0:
        return True
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.data_ptr() != 0 and tensor.untyped_storage().nbytes() >= needed


def check_loss(loss: object) -> float | Tensor:
    """``loss``, a number or a tensor with one element, as a float or a 0-dim tensor.

    Never waits for the device.

    Raises:
        TypeError: not a number.
        ValueError: a tensor with more or fewer elements.
    """
    if type(loss) is float:
        return loss
    loss = plain(loss)
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(
                f"the loss has shape {tuple(loss.shape)}; expected a scalar (a tensor with one element, or a "
                "float): pass loss.mean()"
            )
        if loss.dtype.is_complex or loss.dtype == torch.bool:
            raise TypeError(f"the loss has dtype {loss.dtype}; expected a real number")
        return scalar(loss)
    if isinstance(loss, numbers.Real) and not isinstance(loss, bool):
        return float(loss)
    raise TypeError(
        f"the loss is a {type(loss).__name__}; expected a float or a 0-dim tensor, the value that "
        "backward() was called on"
    )


def scalar(value: Tensor) -> Tensor:
    """The number in a tensor of one element: 0-dim, without a graph; itself where it is that."""
    if value.requires_grad:
        value = value.detach()
    return value if value.ndim == 0 else value.reshape(())


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
