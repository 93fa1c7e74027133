"""Several processes on this machine (gloo) that run a worker's scenarios.

python ranks.py WORKER WORLD FOLDER ...: import the worker, become ``WORLD`` processes, and leave the results
of each in a file. They are forks because importing takes longer than most scenarios do.
"""

import functools
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from support import search_path

TIMEOUT = 240
"""Seconds after which a rank is ended."""


@functools.cache
def results_of(worker: ModuleType, world: int, *arguments: str) -> list[dict[str, Any]]:
    """What each of ``world`` ranks found, scenario by scenario; they run once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    assert worker.__file__ is not None
    environment["PYTHONPATH"] = search_path(Path(worker.__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, worker.__name__, str(world), folder, *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def run_scenarios(worker: Any, rank: int, world: int, folder: Path, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=world
    )
    results = {each.__name__: each(rank, world, *arguments) for each in worker.SCENARIOS}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def fork(run: Callable[[int], None], world: int) -> list[int]:
    """Exit codes by rank, as subprocess has them; the first rank that fails ends the others."""
    ranks, codes = {}, [0] * world
    for rank in range(world):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                signal.alarm(TIMEOUT)
                run(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:  # never on to what the parent does
                sys.stderr.flush()
                os._exit(code)
        ranks[process] = rank
    while ranks:
        process, status = os.wait()
        codes[ranks.pop(process)] = os.waitstatus_to_exitcode(status)
        if status != 0:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return codes


def main(name: str, world: int, folder: Path, arguments: list[str]) -> int:
    worker = importlib.import_module(name)
    return int(any(fork(lambda r: run_scenarios(worker, r, world, folder, arguments), world)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
