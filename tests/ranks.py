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
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 240
"""Seconds after which a rank is ended."""


@functools.cache
def results_of(worker: ModuleType, world: int, *arguments: str) -> list[dict[str, Any]]:
    """What each of ``world`` ranks found, scenario by scenario; they run once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
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


def fork(worker: Any, world: int, folder: Path, arguments: list[str]) -> int:
    """How many ranks failed; the first that does ends the others."""
    ranks = set()
    for rank in range(world):
        process = os.fork()
        if process == 0:
            status = 1
            try:
                signal.alarm(TIMEOUT)
                run_scenarios(worker, rank, world, folder, arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:  # never on to what the parent does
                sys.stderr.flush()
                os._exit(status)
        ranks.add(process)
    failed = 0
    while ranks:
        process, status = os.wait()
        ranks.remove(process)
        if status != 0:
            failed += 1
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return failed


if __name__ == "__main__":
    name, world, folder, *arguments = sys.argv[1:]
    sys.exit(min(fork(importlib.import_module(name), int(world), Path(folder), arguments), 1))
