"""What one optimizer step costs on the CPU, against the memory's bandwidth and against its peers.

    make bench                        about 28.4 million parameters
    make bench ARGS="--size quick"    small, to see that everything runs

The contestants take turns: on a machine that does other things too, all of them then
see the same weather.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from conftest import RECORDS
from summary import ROOFLINE
from workloads import LOSS, PEERS, SIZES, Step, make_params, state_bytes

from sfplus_kernels import _C, AdamCScheduleFreePlus
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

TURNS = range(15)
ROUNDS = 3


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


def time_rounds(
    benchmark: Any, step: Step, name: str, bytes_per_param: int, n_params: int, state_bytes: int
) -> None:
    benchmark.pedantic(step, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    figures = {
        "n_params": n_params,
        "bytes_per_param": bytes_per_param,
        "state_bytes": state_bytes,
    }
    benchmark.extra_info.update(figures)
    record = RECORDS[name]
    vars(record).update(figures)
    record.seconds.extend(benchmark.stats.stats.data)


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


@pytest.mark.parametrize("name", [ROOFLINE, *PEERS])  # the upper one varies faster
@pytest.mark.parametrize("turn", TURNS)
def test_step(benchmark: Any, pytestconfig: pytest.Config, name: str, turn: int) -> None:
    size = pytestconfig.getoption("--size")
    n_params = total(size)
    if name == ROOFLINE:
        # as many bytes as AdamW reads and writes in place: three arrays of the model's size
        buffer = bandwidth_buffer(3 * n_params)

        def sweep() -> None:
            _C.negate(buffer.data_ptr(), buffer.numel(), torch.get_num_threads())

        time_rounds(benchmark, sweep, name, 3 * 8, n_params, 0)
        return
    peer = PEERS[name]
    optimizer, step = contestant(name, size)
    time_rounds(benchmark, step, name, peer.bytes_per_param, n_params, state_bytes(optimizer))
    benchmark.extra_info["counted"] = peer.counted
