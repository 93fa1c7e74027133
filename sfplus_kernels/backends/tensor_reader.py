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
    return compiled.TensorReader(PLAIN, probes)
