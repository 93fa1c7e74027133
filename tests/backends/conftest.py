"""What the Triton compiler makes of the kernels, on machines without a GPU too: once for all the tests of it.

Every kernel is compiled for three generations of GPUs; for one of them with every pair of dtypes. That is for
``make test-slow``; ``make test`` compiles for the first of them and the usual dtypes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from triton_binary import TARGETS, Kernel, Kernels, Target


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Kernels]:
    """All kernels of a target by name, compiled when they are first asked for."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    program = Path(__file__).with_name("triton_ahead_of_time.py")

    @cache
    def compile_for(target: Target) -> Kernels:
        done = subprocess.run(
            [sys.executable, str(program), json.dumps(asdict(target))],
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
        pytest.param(target, marks=[] if target == TARGETS[0] else pytest.mark.slow)
        for target in TARGETS
    ],
    ids=str,
)
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


@pytest.fixture
def kernels(compiled: Callable[[Target], Kernels], target: Target) -> Kernels:
    return compiled(target)
