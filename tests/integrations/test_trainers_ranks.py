"""Each trainer's own data parallelism, with two processes: the numbers of one, and equal replicas."""

from typing import Any

import pytest
import torch
from libraries import needs, same
from support.ranks import results_of

needs("accelerate")

import trainers_worker as worker

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=[s.__name__ for s in worker.SCENARIOS])
def pair(request: pytest.FixtureRequest) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and what two found."""
    (one,), two = results_of(worker, 1), results_of(worker, 2)
    if not one[request.param]:
        pytest.skip("the library is not installed")
    return one[request.param], [result[request.param] for result in two]


def test_two_processes(pair: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    one, two = pair
    assert len(one["losses"]) > 1
    for result in two:
        for name in {"losses", "norms", "polyak"} & set(one):
            assert result[name] == pytest.approx(one[name], rel=1e-4)
        for name in {"held", "x", "evaluated", "file"} & set(one):
            assert same(result[name], two[0][name])  # to the last bit, after many saves
            for key, value in one[name].items():
                torch.testing.assert_close(result[name][key], value, rtol=1e-3, atol=1e-5)
        if "saved" in result:
            assert result["saved"]
        if "logged" in one:
            assert two[0]["losses"] == pytest.approx(two[0]["logged"], rel=1e-4)
            assert one["losses"] == pytest.approx(one["logged"], rel=1e-4)
        if "file" in one:
            assert same(result["file"], result["evaluated"])
        if "at_x" in one:
            assert all(result["at_x"])
