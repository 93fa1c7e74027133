"""A step waits for no thread of the pool that has not come: here for one that is held as debuggers do it."""

import contextlib
import ctypes
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfplus_kernels import AdamCScheduleFreePlus

ATTACH, ALL_THREADS = 16, 0x40000000  # of sys/ptrace.h and of linux/wait.h


def _first_step() -> tuple[AdamCScheduleFreePlus, torch.nn.Parameter]:
    param = torch.nn.Parameter(torch.linspace(-1, 1, 400_000))
    param.grad = torch.linspace(1, -2, 400_000)
    optimizer = AdamCScheduleFreePlus([param], backend="cpu", lr=0.1)
    optimizer.train()
    optimizer.step(loss=1.5)
    return optimizer, param


def _more_steps(optimizer: AdamCScheduleFreePlus, param: torch.nn.Parameter) -> str:
    for _ in range(3):
        optimizer.step(loss=1.5)
    return param.detach().numpy().tobytes().hex()[::5000]


def _hold(thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(ATTACH, thread, None, None) != 0:
        pytest.skip(f"no thread can be held here: {os.strerror(ctypes.get_errno())}")
    os.waitpid(thread, ALL_THREADS)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are held by Linux's ptrace")
def test_a_step_does_not_wait_for_a_thread_that_has_not_come() -> None:
    """As where other threads have all processors. The caller does all of the work, with the same bits."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    thread = process.pid
    try:
        (thread,) = map(int, process.stdout.readline().split())  # the only one of the pool
        _hold(thread)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 30)[0], "the steps wait for the thread"
        assert process.stdout.readline().strip() == _more_steps(*_first_step())
    finally:
        process.kill()
        # a process lasts until whoever holds one of its threads has seen the end of that
        with contextlib.suppress(ChildProcessError):
            os.waitpid(thread, ALL_THREADS)
        process.communicate()


def _main() -> None:
    torch.set_num_threads(2)
    torch.ones(10**7).neg_()  # from here on torch's own threads are there
    before = {*os.listdir("/proc/self/task")}
    started = _first_step()
    print(*{*os.listdir("/proc/self/task")} - before, flush=True)
    sys.stdin.readline()
    print(_more_steps(*started), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    _main()
