"""Contestants as on a GPU, without one: all that the host does for a step, and launches that do nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.contestants.contestant import Contestant, Step
from bench.work.traffic import engine_of
from sfplus_kernels.backends.cuda import CudaBackend
from sfplus_kernels.backends.native import _C

NAME = "{name} cuda, kernels faked"
LAUNCHES = ("cuda_reduce", "cuda_finalize", "cuda_update", "cuda_interpolate")


class NoKernels:
    """The extension as the CUDA backend knows it, but for its kernels."""

    def __init__(self) -> None:
        self.Table, self.Run, self.Finish = _C.Table, _C.Run, _C.Finish

    def __getattr__(self, name: str) -> Any:
        if name not in LAUNCHES:
            raise AttributeError(name)
        return _nothing


def can_be_faked(contestant: Contestant, device: torch.device) -> bool:
    """Whether it is one of ours on the CPU, and the extension knows what to hand to a kernel."""
    here = contestant.ours and device.type == "cpu" and not _C.CUDA_MISSING
    return here and contestant.name.endswith(" cpu")


def with_faked_kernels(contestant: Contestant) -> Contestant:
    """Its tensors are on the CPU, and its backend takes them for a GPU's. Nothing is computed."""

    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer, step = contestant.make(params)
        engine_of(optimizer)._backend = CudaBackend(NoKernels())
        return optimizer, step

    name = NAME.format(name=contestant.name.removesuffix(" cpu"))
    return replace(contestant, name=name, make=make, oracle=None)


def _nothing(*arguments: Any) -> None:
    pass
