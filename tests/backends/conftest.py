"""What the Triton compiler makes of the kernels, on machines without a GPU too: once for all the tests of it.

Every kernel is compiled for three generations of GPUs; for one of them with every pair of dtypes. The first
is for ``make test``, the others for ``make test-slow``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from triton_binary import ARCHITECTURES, EVERY_PAIR, Kernel, Kernels


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Kernels]:
    """All kernels of an architecture by name, compiled when they are first asked for."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    program = Path(__file__).with_name("triton_ahead_of_time.py")

    @cache
    def compile_for(arch: int) -> Kernels:
        done = subprocess.run(
            [sys.executable, str(program), str(arch), *(["--every-pair"] * (arch == EVERY_PAIR))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        kernels: dict[str, Any] = json.loads(done.stdout)
        return {name: Kernel(**figures) for name, figures in kernels.items()}

    return compile_for


@pytest.fixture(
    params=[
        pytest.param(arch, marks=[] if arch == ARCHITECTURES[0] else pytest.mark.slow)
        for arch in ARCHITECTURES
    ],
    ids=[f"sm_{arch}" for arch in ARCHITECTURES],
)
def arch(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def kernels(compiled: Callable[[int], Kernels], arch: int) -> Kernels:
    return compiled(arch)
