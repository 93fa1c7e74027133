"""Options and provenance of the benchmarks under pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.contestants.all import contestants
from bench.contestants.contestant import Step
from bench.measure.sections import Bench
from bench.record.provenance import collect
from bench.work.workloads import Workload, suite


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small tensors: does everything run?")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.addoption("--device", default=default, help="such as cpu or cuda:1")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Saved results say what they were measured on (pytest-benchmark adds commit and date).

    What changes from run to run on one machine is left out: a comparison would warn of another machine.
    """
    known = collect(torch.device(config.getoption("--device")))
    changing = ("clocks", "commit", "date")
    machine_info["sfplus"] = {key: known[key] for key in known if key not in changing}
    machine_info["node"] = ""  # nobody needs the host's name
    for key in ("hz_actual", "hz_actual_friendly"):
        machine_info.get("cpu", {}).pop(key, None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for each contestant that there is for the device."""
    if "name" in metafunc.fixturenames:
        device = torch.device(metafunc.config.getoption("--device"))
        metafunc.parametrize("name", [c.name for c in contestants(device) if not c.absent])


def timed_cold(benchmark: Any, bench: Bench, step: Step) -> None:
    """Rounds of ``step``, each with other data in the caches."""

    def run() -> None:
        step()
        bench.timer.wait()  # for the GPU, else only its queue would be timed

    def cold() -> None:
        bench.timer.flush()
        bench.timer.wait()

    benchmark.pedantic(run, setup=cold, rounds=3 if bench.quick else 15, warmup_rounds=1)


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    device = torch.device(request.config.getoption("--device"))
    return Bench(device, contestants(device), quick=request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def workload(bench: Bench) -> Workload:
    """The one in which every contestant takes part."""
    return suite(bench.device.type, bench.quick)[0]
