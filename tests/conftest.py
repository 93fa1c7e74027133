"""Settings that must be in place before torch and triton are imported by any test."""

import importlib.util
import os
import sys
from typing import Any

# Two processes run the tests on two cores: with more threads each they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton kernels then run on CPU tensors
os.environ.pop("SFPLUS_BACKEND", None)

import pytest
from support import BACKENDS, ROOT

sys.path.append(str(ROOT))  # for bench; behind an installed package

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    from support import interpreter

    interpreter.quicken()

IN_ONE_PROCESS = (
    "test_cuda_binary.py",
    "test_cuda_driver.py",
    "test_cuda_on_host.py",
    "test_digits.py",
    "test_distributed.py",
    "test_distributed_checkpoint.py",
    "test_divided_formats.py",
    "test_dtensor.py",
    "test_follow_ranks.py",
    "test_train_lm.py",
    "test_train_lm_parallel.py",
)
"""Files whose tests share something that takes long to make. By this name and not by xdist's mark for groups,
which has no effect with pytest 9.2."""

TOGETHER = {
    "the site": ("test_figures.py", "test_site.py"),
    "Triton's compiler": (
        "test_triton_compile.py",
        "test_triton_memory.py",
        "test_triton_resources.py",
    ),
}
"""Files that share it with each other."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            for what, files in TOGETHER.items():
                if file.endswith(files):
                    return what
            return file if file.endswith(IN_ONE_PROCESS) else nodeid

    return Scheduler(config, log)


KERNELS = ("backends", "numbers")
"""Folders of tests of the kernels themselves. Triton's interpreter takes seconds for what other backends do
in a moment: there each function of these folders runs with the first of its parameters. The others, and
tests of what is above the backends, are left to ``make test-slow``, which is part of ``.ci/run`` too."""


def backend_of(item: pytest.Item) -> str | None:
    parameters = getattr(item, "callspec", None)
    return parameters.params.get("backend") if parameters else None


def leave_to_the_slow_ones(items: list[pytest.Item]) -> None:
    seen = set()
    for item in items:
        if backend_of(item) == "triton":
            function = item.nodeid.partition("[")[0]
            if item.path.parent.name not in KERNELS or function in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(function)


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    leave_to_the_slow_ones(items)
    for item in items:
        # Tracing doubles the time of Triton's interpreter: a few modules are enough to see the kernels.
        name = item.nodeid.partition("::")[0]
        if "[triton" in item.nodeid and not name.endswith(("test_modes.py", "test_faults.py")):
            item.add_marker(pytest.mark.no_cover)
    skip = pytest.mark.skip(reason="needs a CUDA device, torch finds none")
    for item in items:
        if item.get_closest_marker("gpu"):  # not keywords: a folder may be called so
            item.add_marker(skip)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn; one that cannot run fails its tests."""
    return str(request.param)
