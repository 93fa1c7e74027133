"""The cpu backend's threads: the same bits for any number of them, and alive after a fork."""

import multiprocessing
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import EVERYTHING, assert_same_bits, make_params, run, snapshot

from sfplus_kernels import AdamCScheduleFreePlus

SHAPES = [(300_001,), (0,), (700, 401), (17,), (123_456,)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    params = make_params(SHAPES, dtype)
    optimizer = AdamCScheduleFreePlus(params, backend="cpu", **EVERYTHING)
    run(optimizer, params, 4)
    optimizer.eval()
    optimizer.train()
    return snapshot(optimizer, params)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_with_any_number_of_threads(dtype: torch.dtype) -> None:
    results = []
    for count in (1, 2, 3, 7, 1):
        torch.set_num_threads(count)
        results.append(train(dtype))
    for other in results[1:]:
        assert_same_bits(results[0], other)


def _step_and_report(optimizer: AdamCScheduleFreePlus, params: list, queue: Any) -> None:
    optimizer.step(loss=1.5)
    queue.put([p.detach().numpy().tobytes() for p in params])


def test_fork_after_a_step() -> None:
    """A forked process (a data loader's worker) has none of its parent's threads.

    The child does nothing else on threads: torch's own OpenMP ones do not survive a fork.
    """
    params = make_params(SHAPES, torch.float32)
    optimizer = AdamCScheduleFreePlus(params, backend="cpu", **EVERYTHING)
    run(optimizer, params, 4)  # the pool is awake
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_step_and_report, args=(optimizer, params, queue), daemon=True)
    with warnings.catch_warnings():
        # Python's own, about forking a process that has threads
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    try:
        assert queue._reader.poll(60), "the child hangs"  # type: ignore[attr-defined]
        in_child = queue.get()
        process.join(timeout=60)
        assert process.exitcode == 0
    finally:
        process.kill()
    optimizer.step(loss=1.5)  # and the parent's threads are still there
    assert in_child == [p.detach().numpy().tobytes() for p in params]


def test_steps_in_two_python_threads_at_once() -> None:
    """They share the pool, one job at a time."""

    def work() -> None:
        results.append(train())

    results: list[dict[str, Any]] = []
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert len(results) == 4
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.usefixtures("threads")
def test_threads_flush_subnormals_as_their_caller_does() -> None:
    """Else the bits would depend on which thread took which chunk."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            param = torch.nn.Parameter(torch.zeros(300_000))
            param.grad = torch.full_like(param, 1e-20)  # its square is subnormal
            optimizer = AdamCScheduleFreePlus([param], backend="cpu", lr=1e-12)
            optimizer.train()
            optimizer.step(loss=1.0)
            results.append(optimizer.state[param]["exp_avg_sq"].clone())
            assert optimizer.metrics()["k"] == 1
    finally:
        torch.set_flush_denormal(False)
    for exp_avg_sq in results:
        assert not exp_avg_sq.count_nonzero()
