"""Launches the Triton kernels as a step does, up to the compiler, which is left out: the program that
``test_triton_steps`` runs. A driver that only names a GPU stands in for NVIDIA's.

It prints how many variants of each kernel there would be, for models of other sizes and losses elsewhere;
each must be one that ``triton_ahead_of_time`` compiles.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton_ahead_of_time as ahead
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from sfplus_kernels.backends import table
from sfplus_kernels.backends.triton import backend as triton_backend
from sfplus_kernels.contract.backend import Entry, RunState

CPU = torch.device("cpu")


def launch(kernel: Any, n_programs: int) -> Callable[..., None]:
    """As ``kernel[(n_programs,)]``, but nothing is run."""

    def launched(*args: Any, **kwargs: Any) -> None:
        recorded = ahead.RecordedLaunch(kernel, args, kwargs)

        def compiled(src: Any, target: Any, options: dict[str, Any], **_: Any) -> Any:
            wanted = recorded.options | {"num_warps": options["num_warps"]}
            assert src.signature == recorded.signature, (src.signature, recorded.signature)
            assert {k: options[k] for k in wanted} == wanted, options
            variants.setdefault(recorded.name, []).append(str(recorded))
            return SimpleNamespace()

        kernel.device_caches[0]  # makes what reads arguments, and sets the compiler
        kernel.compile = compiled
        kernel.warmup(*args, grid=(n_programs,), **kwargs)

    return launched


def step(numels: list[int], loss: torch.Tensor, *, sums: bool) -> None:
    entries = []
    for i, numel in enumerate(numels):
        param, e, m, v = (torch.zeros(numel) for _ in range(4))
        entries.append(Entry(param, m, v, e, None, i, i, torch.float32))
    run = RunState.zeros(len(numels), len(numels), CPU)
    plan = table.build_table(entries, CPU, triton_backend.chunk_size(False))
    triton_backend.TritonBackend().step(plan, run, sums=sums, with_e=True, loss=loss)


variants: dict[str, list[str]] = {}
driver.set_active(
    SimpleNamespace(  # type: ignore[arg-type]
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
)
triton_backend._grid = launch
losses = torch.zeros(4)
for numels in ([99], [40_000, 8_192, 5], [16] * 16):
    for sums in (True, False):
        for number in (
            0,
            1,
        ):  # at an address that is a multiple of 16 bytes, and at one that is not
            step(numels, losses[number], sums=sums)
json.dump({name: len(made) for name, made in variants.items()}, sys.stdout)
