"""Ranges in torch's profiler, one for each pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._C._autograd import _profiler_enabled

NO_RANGE = nullcontext()


def profiled(name: str) -> AbstractContextManager[Any]:
    """A range of that name in torch's profiler (and in NVTX, if it emits that); nothing without one."""
    if _profiler_enabled():
        return torch.profiler.record_function(f"sfplus_kernels::{name}")
    return NO_RANGE
