"""follow() with two processes: FSDP2, which keeps whole weights after a forward pass, and DDP."""

from typing import Any

import follow_worker as worker
import pytest
import torch
from support.ranks import results_of


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return results_of(worker, 2)


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    model = worker.make()
    return worker.train_and_validate(model, worker.optimizer_of(model), 0, 1, by_hand=True)


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("reshard", [True, False])
def test_validation_under_fsdp2(
    results: list[dict[str, Any]], alone: list[torch.Tensor], reshard: bool, save: bool
) -> None:
    for result in results:
        found = result["fsdp2"][reshard, False, save]
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-7)
        assert result["fsdp2"][reshard, "saved"]


def test_the_trap_that_is_closed(results: list[dict[str, Any]], alone: list[torch.Tensor]) -> None:
    """By hand, eval() and train() are right where every module reshards, and silently wrong where not."""
    found = results[0]["fsdp2"]
    torch.testing.assert_close(found[True, True, False], alone, rtol=1e-5, atol=1e-7)
    wrong = [
        abs(float(a - b) / float(b)) for a, b in zip(found[False, True, False], alone, strict=True)
    ]
    assert max(wrong) > 1e-4


def test_replicas_that_save_often_stay_equal(
    results: list[dict[str, Any]], alone: list[torch.Tensor]
) -> None:
    first, second = (result["ddp"] for result in results)
    for p, q in zip(first["params"], second["params"], strict=True):
        assert torch.equal(p, q)
    torch.testing.assert_close(first["losses"], alone, rtol=1e-5, atol=1e-7)
