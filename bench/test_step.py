"""What one optimizer step costs on the CPU, against the memory's bandwidth and against its peers.

    make bench                        about 28.4 million parameters
    make bench ARGS="--size quick"    small, to see that everything runs

The contestants take turns in several passes: on a machine that does other things too, all of them then
see the same weather.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from conftest import RECORDS, ROOFLINE
from workloads import LOSS, PEERS, SIZES, Step, make_params, state_bytes

from sfplus_kernels import _C, AdamCScheduleFreePlus
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

PASSES = range(5)
ROUNDS = 5


def total(size: str) -> int:
    return sum(torch.Size(shape).numel() for shape in SIZES[size])


@cache
def contestant(name: str, size: str) -> tuple[torch.optim.Optimizer, Step]:
    """Made once, with its state; the first steps are part of the warm-up."""
    optimizer, step = PEERS[name].make(make_params(SIZES[size]))
    for _ in range(2):
        step()
    return optimizer, step


@cache
def bandwidth_buffer(numel: int) -> torch.Tensor:
    return torch.ones(numel)


def time_rounds(benchmark: Any, step: Step, name: str, n_params: int, bytes_per_param: int) -> None:
    benchmark.pedantic(step, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    record = RECORDS[name]
    record.seconds.extend(benchmark.stats.stats.data)
    record.n_params, record.bytes_per_param = n_params, bytes_per_param
    benchmark.extra_info.update(n_params=n_params, bytes_per_param=bytes_per_param)


def test_the_step_that_is_timed_is_correct(pytestconfig: pytest.Config) -> None:
    """Five steps beside the reference class, before anything is timed."""
    ours, theirs = (make_params(SIZES["quick"]) for _ in range(2))
    optimizers = (
        AdamCScheduleFreePlus(ours, lr=0.1, weight_decay=1.0, backend="cpu"),
        AdamCScheduleFreePlusReference(theirs, lr=0.1, weight_decay=1.0),
    )
    start = [p.detach().clone() for p in ours]
    for optimizer in optimizers:
        optimizer.train()
        for _ in range(5):
            optimizer.step(loss=LOSS)
        optimizer.eval()
    for mine, other, first in zip(ours, theirs, start, strict=True):
        assert not torch.equal(mine, first)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("turn", PASSES)
@pytest.mark.parametrize("name", [ROOFLINE, *PEERS])
def test_step(benchmark: Any, pytestconfig: pytest.Config, name: str, turn: int) -> None:
    size = pytestconfig.getoption("--size")
    n_params = total(size)
    if name == ROOFLINE:
        # as many bytes as AdamW reads and writes in place: three arrays of the model's size
        buffer = bandwidth_buffer(3 * n_params)

        def sweep() -> None:
            _C.negate(buffer.data_ptr(), buffer.numel(), torch.get_num_threads())

        time_rounds(benchmark, sweep, name, n_params, 3 * 8)
        return
    optimizer, step = contestant(name, size)
    time_rounds(benchmark, step, name, n_params, PEERS[name].bytes_per_param)
    RECORDS[name].state_bytes = state_bytes(optimizer)
    benchmark.extra_info.update(state_bytes=state_bytes(optimizer), counted=PEERS[name].counted)
