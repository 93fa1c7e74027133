"""Whole steps under pytest-benchmark, to follow regressions on one machine from commit to commit.

    pytest bench --benchmark-autosave        save this commit's times
    pytest bench --benchmark-compare         compare with the last save
    pytest bench --quick                     small, to see that everything runs

The contestants come one after the other here. To compare them with each other, let them take turns:
python -m bench.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.conftest import timed_cold
from bench.measure.sections import Bench
from bench.work.workloads import Workload, make_params


@pytest.mark.parametrize("ceiling", ["in-place", "copy", "triad", "read-only"])
def test_ceiling(benchmark: Any, bench: Bench, ceiling: str) -> None:
    benchmark.extra_info["traffic"] = bench.ceilings[ceiling].traffic
    rounds = 3 if bench.quick else 15

    def run() -> None:
        bench.ceilings[ceiling].run()
        bench.timer.wait()

    benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what torch.compile imports
def test_step(benchmark: Any, bench: Bench, workload: Workload, name: str) -> None:
    contestant = next(c for c in bench.contestants if c.name == name)
    checked = bench.check(contestant, workload)
    assert checked.status == "ok", f"{name} is not timed: {checked.reason}"
    params = make_params(workload.shapes(), bench.device, workload.param_dtype, workload.grad_dtype)
    _, step = contestant.make(params)
    step()
    benchmark.extra_info["traffic"] = sum(p.numel() for p in params) * checked.bytes_per_param

    timed_cold(benchmark, bench, step)
