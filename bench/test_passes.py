"""Each pass of our steps alone under pytest-benchmark, as bench/test_step.py does with whole steps."""

from __future__ import annotations

from typing import Any

import pytest

from bench.conftest import timed_cold
from bench.contestants.contestant import OTHERS
from bench.measure.passes import passes
from bench.measure.sections import Bench
from bench.work.workloads import Workload, make_params


@pytest.mark.parametrize("pass_name", ["reduce", "finalize", "update", "interpolate"])
def test_pass(benchmark: Any, bench: Bench, workload: Workload, name: str, pass_name: str) -> None:
    contestant = next(c for c in bench.contestants if c.name == name)
    if not contestant.ours or name.endswith(" eager") or contestant.tier == OTHERS:
        pytest.skip("only the main classes on a compiled backend have passes to time")
    params = make_params(workload.shapes(), bench.device, workload.param_dtype, workload.grad_dtype)
    found = {p.name: p for p in passes(contestant, params)}
    if pass_name not in found:
        pytest.skip("takes one pass only")
    benchmark.extra_info["traffic"] = found[pass_name].traffic
    timed_cold(benchmark, bench, found[pass_name].run)
