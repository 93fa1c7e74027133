"""torch.distributed.checkpoint: two processes save; as many, one and (slow) four go on from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_worker as worker
import pytest
import torch
from support import assert_same_bits
from support.ranks import results_of

OTHER_WORLDS = [1, pytest.param(4, marks=pytest.mark.slow)]
SOURCES = {case: case for case in worker.CASES} | {"async": "plus", "full": "plus"}
"""What is loaded, and the case whose uninterrupted run it continues."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """By number of processes; the two that save come first."""
    shared: Path = tmp_path_factory.mktemp("checkpoints")

    def of(world: int) -> list[dict[str, Any]]:
        return [rank["checkpoints"] for rank in results_of(worker, world, str(shared))]

    of(worker.SAVING_WORLD)
    return of


@pytest.mark.parametrize("source", SOURCES)
def test_resumed_run_is_the_uninterrupted_one(runs: Any, source: str) -> None:
    """To the last bit, dtypes and the count of steps included."""
    for rank in runs(worker.SAVING_WORLD):
        assert_same_bits(rank["resumed"][source], rank["saved"][SOURCES[source]])


@pytest.mark.parametrize("world", OTHER_WORLDS)
@pytest.mark.parametrize("source", SOURCES)
def test_resumed_with_another_number_of_processes(runs: Any, source: str, world: int) -> None:
    """To rounding: sums over the batch and over the gradients are formed in another order."""
    expected = runs(worker.SAVING_WORLD)[0]["saved"][SOURCES[source]]
    tolerance = 0.02 if "bfloat16" in source else 1e-9
    for rank in runs(world):
        found = rank["resumed"][source]
        assert found["k"] == expected["k"] == worker.STEPS
        assert found["dtypes"] == expected["dtypes"]
        for name, value in expected["params"].items():
            torch.testing.assert_close(
                found["params"][name], value, rtol=tolerance, atol=tolerance / 100
            )


def test_low_precision_parameters_keep_their_state_in_float32(runs: Any) -> None:
    dtypes = runs(worker.SAVING_WORLD)[0]["resumed"]["plus in bfloat16"]["dtypes"]
    assert dtypes["head.weight.master_param"] == torch.float32
    assert dtypes["head.weight.exp_avg"] == torch.float32
    assert dtypes["head.weight.step"] == torch.float64


def test_different_optimizers_end_apart(runs: Any) -> None:
    cases = {kind: case for case, (kind, *_) in worker.CASES.items()}.values()
    ends = [runs(1)[0]["resumed"][case]["params"]["head.weight"] for case in cases]
    for i, one in enumerate(ends):
        for other in ends[i + 1 :]:
            assert not torch.allclose(one.double(), other.double(), rtol=1e-3)
