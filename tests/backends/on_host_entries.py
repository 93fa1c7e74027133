"""What the tests of the CUDA kernels on the host share: the stand-in, a parameter with its state, a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuda_on_host
import pytest
import torch
from torch import Tensor

from sfplus_kernels.backends import registry
from sfplus_kernels.contract.backend import Entry, RunState

CPU = torch.device("cpu")
BACKEND = cuda_on_host.RECORD.name
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for GPU and driver, and its kernels under the name ``cuda_on_host``."""
    monkeypatch.setitem(registry._RECORDS, BACKEND, cuda_on_host.RECORD)
    settings = cuda_on_host.module().settings
    settings.reverse, settings.fail_next, settings.device, settings.calls = False, 0, 0, []
    yield settings
    settings.reverse, settings.fail_next, settings.device = False, 0, 0


def snapshot_of(optimizer: Any, params: list[Tensor]) -> Any:
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.pop("skipped_steps", None)
        group.pop("consecutive_skipped_steps", None)
    return [p.detach().clone() for p in params], state


def make_entry(param: Tensor, offset: int = 0, grad_dtype: torch.dtype | None = None) -> Entry:
    """Random state; its memory begins ``offset`` elements after an aligned address."""
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    state = [torch.randn(param.numel() + offset, dtype=dtype)[offset:] for _ in range(4)]
    master = state[3] if param.dtype != dtype else None
    return Entry(param, state[0], state[1].abs(), state[2], master, 0, 0, grad_dtype)


def random_run() -> RunState:
    generator = torch.Generator().manual_seed(3)
    state = RunState.zeros(1, 1, CPU)
    for buffer in (state.group_coefs, state.tensor_coefs, state.tensors, state.hyper):
        buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) / 2)
    return state
