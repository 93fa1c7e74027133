"""Several processes on this machine (gloo) that run a worker's scenarios."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


@functools.cache
def results_of(worker: ModuleType, world: int, *arguments: str) -> list[dict[str, Any]]:
    """What each of ``world`` ranks found, scenario by scenario; they run once."""
    script = Path(str(worker.__file__))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), str(world), folder, *arguments],
                # sets of names are in another order in each process, whatever the seed of this one
                env={**environment, "PYTHONHASHSEED": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            errors = [process.communicate(timeout=240)[1] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        for process, error in zip(ranks, errors, strict=True):
            assert process.returncode == 0, error
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
