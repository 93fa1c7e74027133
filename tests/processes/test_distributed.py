"""Several processes (gloo, on this machine) take one step: that of one process on the whole model."""

from typing import Any

import distributed_worker as worker
import pytest
import torch
from support import EVERYTHING, assert_same_bits, make_params, run, set_gradients, stream
from support.ranks import results_of
from torch import nn

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.processes.collective import Collective


@pytest.fixture(params=[2, 3], ids=["2 ranks", "3 ranks"])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The processes run once for all tests."""
    return results_of(worker, request.param)


def whole_run(steps: int, **arguments: Any) -> list[torch.Tensor]:
    """One process with the mean over the ranks' shares as its loss."""
    model = worker.make_model()
    optimizer = AdamCScheduleFreePlus(model.parameters(), **arguments)
    worker.train(model, optimizer, 0, 1, steps)
    return [p.detach() for p in model.parameters()]


def equal_shares(results: list[dict[str, Any]]) -> None:
    if len(results) == 3:
        pytest.skip("8 examples do not divide by 3: the mean of the means is another loss")


def assert_close(found: list, expected: list) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_ddp_ranks_keep_the_same_bits(results: list[dict[str, Any]]) -> None:
    first, *others = (rank["ddp"] for rank in results)
    for other in others:
        assert other["losses"] != first["losses"]
        assert_same_bits(other["params"], first["params"])


def test_ddp_is_the_run_of_one_process(results: list[dict[str, Any]]) -> None:
    equal_shares(results)
    arguments = {**EVERYTHING, "lr": 0.05, "max_grad_norm": 0.5}
    assert_close(results[0]["ddp"]["params"], whole_run(worker.STEPS, **arguments))


def test_ranks_that_do_not_share_the_loss_drift_apart(results: list[dict[str, Any]]) -> None:
    """Upstream's fault, and what the mean is for."""
    first, second = (rank["ddp_without_the_mean"]["params"] for rank in results[:2])
    assert max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) > 1e-6


def test_all_ranks_skip_what_one_cannot_take(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["one_rank_has_a_nan"]["skipped"] == [0, 0, 1, 1, 2, 2]
        assert_same_bits(
            rank["one_rank_has_a_nan"]["params"], results[0]["one_rank_has_a_nan"]["params"]
        )


def test_shards_take_the_step_of_the_whole(results: list[dict[str, Any]]) -> None:
    """The sums, the norm that clips and the loss are global; the last rank holds no element."""
    params = make_params(worker.SHAPES)
    optimizer = AdamCScheduleFreePlus(params, **EVERYTHING, max_grad_norm=20.0)
    run(optimizer, params, 20, missing=0.3)
    metrics = optimizer.metrics()
    world = len(results)
    for rank, result in enumerate(results):
        for key, figure in result["shards"]["figures"].items():
            assert figure == pytest.approx(metrics[key], rel=1e-9), key
        mine = {id(p) for p in worker.own(params, rank, world)}
        for p, found in zip(params, result["shards"]["params"], strict=True):
            if id(p) in mine:
                torch.testing.assert_close(found, p.detach(), rtol=1e-9, atol=1e-11)


def test_compiled_ranks_take_the_same_steps(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert_same_bits(rank["compiled_shards"], rank["shards"])


def test_shards_without_a_polyak_step_skip_together(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["shards_of_adamw"] == {"k": 4, "skipped": 1}


def test_step_without_any_gradient_moves_nothing(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["nobody_has_a_gradient"] == {"same": True, "k": 3, "scheduled k": 1}


def test_loss_reductions(results: list[dict[str, Any]]) -> None:
    losses = [1.0 + rank for rank in range(len(results))]
    expected = {"mean": sum(losses) / len(losses), "sum": sum(losses), "None": 5.0}
    for rank in results:
        assert rank["loss_reductions"] == pytest.approx(expected)


def test_zero_redundancy_optimizer_is_the_run_of_one_process(results: list[dict[str, Any]]) -> None:
    equal_shares(results)
    expected = whole_run(20, **{**EVERYTHING, "lr": 0.05})
    for rank in results:
        assert_close(rank["zero_redundancy"]["params"], expected)


def test_flat_parameters_of_fsdp1(results: list[dict[str, Any]]) -> None:
    """Padding counts as nothing."""
    equal_shares(results)
    arguments = {**EVERYTHING, "lr": 0.05, "max_grad_norm": 0.5}
    expected = torch.cat([p.flatten() for p in whole_run(20, **arguments)])
    for rank in results:
        found = torch.cat([p.flatten() for p in rank["fsdp1"]["params"]])
        assert_close([found[: len(expected)]], [expected])
        assert not found[len(expected) :].any()


def test_stages_of_a_pipeline_take_one_step(results: list[dict[str, Any]]) -> None:
    """Only the last one knows the loss."""
    arguments = {**EVERYTHING, "lr": 0.05, "max_grad_norm": 0.5}
    expected = whole_run(20, **arguments)
    found = results[0]["pipeline"]["params"] + results[-1]["pipeline"]["params"]
    assert_close(found, expected)


def test_optimizers_that_share_a_step_forget_that_it_was_skipped(
    results: list[dict[str, Any]],
) -> None:
    """Whichever of them steps first after it."""
    params = make_params(worker.SHAPES)
    optimizer = AdamCScheduleFreePlus(params, **EVERYTHING)
    optimizer.train()
    for k, (loss, gradients) in enumerate(stream(worker.SHAPES, 7)):
        if k != 2:
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
    for rank in results:
        assert rank["shared_step"]["skipped"] == [1, 1]
        assert_close(rank["shared_step"]["params"], [p.detach() for p in params])


def test_one_process_is_alone() -> None:
    assert not Collective().active
    with pytest.raises(ValueError, match="loss_reduce is 'max'; expected one of"):
        AdamCScheduleFreePlus(nn.Linear(2, 2).parameters(), loss_reduce="max")
