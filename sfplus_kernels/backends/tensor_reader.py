"""Where tensors are in memory, as the compiled extension reads it: csrc/tensor_reader.cpp."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that are what they look like; of others the local part is looked at."""


@cache
def extension() -> Any | None:
    """The compiled extension, or None where there is none."""
    try:
        return importlib.import_module("sfplus_kernels.backends.native")._C
    except ImportError:
        return None


@cache
def tensor_reader() -> Any | None:
    """The extension's reader, tried on tensors that differ in all that it reads; None without extension."""
    compiled = extension()
    if compiled is None:
        return None
    matrix = torch.zeros(3, 4, dtype=torch.float64, device="cpu")
    probes = (
        matrix,
        matrix.t()[1:, 1:],
        nn.Parameter(torch.zeros(5, dtype=torch.bfloat16, device="cpu")),
        torch.zeros((), device="cpu"),
        torch.zeros(0, 2, dtype=torch.float16, device="cpu"),
    )
    versioned = tuple(_written(times) for times in (3, 50, 400))
    return compiled.TensorReader(PLAIN, probes, versioned, _graded())


@torch.inference_mode(False)
@torch.no_grad()
def _written(times: int) -> tuple[Tensor, Tensor]:
    """A tensor that was written so often, and a view of it."""
    tensor = torch.zeros(1, device="cpu")
    for _ in range(times):
        torch.autograd.graph.increment_version(tensor)
    return tensor, tensor.detach()


@torch.inference_mode(False)
def _graded() -> tuple[Tensor, ...]:
    """Tensors with a gradient, without one, without one any more, and that never had to do with any."""
    params = [nn.Parameter(torch.zeros(n, device="cpu")) for n in (1, 2, 3, 4, 5)]
    for param in params[1:]:
        param.grad = torch.zeros_like(param)
    params[1].grad = None
    return (*params, torch.zeros(1, device="cpu"))


def increment_version(tensors: list[Tensor]) -> None:
    """As ``torch.autograd.graph.increment_version``, quicker where it is known how torch counts."""
    reader = tensor_reader()
    if reader is None or not reader.count_versions(tensors):
        torch.autograd.graph.increment_version(tensors)
