"""Four processes with the model divided in every way: the run of one process on the whole of it."""

import functools
import re
from typing import Any

import dtensor_divided
import dtensor_worker as worker
import pytest
import torch
from dtensor_net import STEPS, WIDTH, Net, trained
from support import assert_same_bits
from support.ranks import results_of

WORLD = 4
DIVIDED = [way.__name__ for way in dtensor_divided.DIVIDED]


@pytest.fixture
def results() -> list[dict[str, Any]]:
    return results_of(worker, WORLD)


@functools.cache
def whole_run() -> dict[str, Any]:
    """One process on whole batches."""
    return trained(Net(), 0, 1)


@pytest.mark.parametrize("name", DIVIDED)
def test_the_run_of_one_process(results: list[dict[str, Any]], name: str) -> None:
    """Parameters, x, and the figures of the step, in which each element counts once."""
    expected = whole_run()
    for rank in results:
        found = rank[name]
        for key, figure in expected["metrics"].items():
            assert found["metrics"][key] == pytest.approx(figure, rel=1e-9), key
        for what in ("params", "x"):
            for key, value in expected[what].items():
                torch.testing.assert_close(found[what][key], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", DIVIDED)
def test_every_rank_has_the_same_bits(results: list[dict[str, Any]], name: str) -> None:
    for rank in results[1:]:
        assert_same_bits(rank[name]["params"], results[0][name]["params"])
        assert_same_bits(rank[name]["metrics"], results[0][name]["metrics"])


def test_the_scenarios_are_what_they_say(results: list[dict[str, Any]]) -> None:
    """Uneven and empty shards, plain tensors beside DTensors, gradients that are still to be added up."""
    held = [rank["fsdp2"]["local"] for rank in results]
    assert [h["head.weight"] for h in held] == [6, 6, 6, 0]
    assert [h["second.weight"] for h in held] == [16, 16, 16, 0]
    assert [h["first.bias"] for h in held] == [2, 2, 2, 2]
    assert {h["head.weight"] for h in (rank["hsdp"]["local"] for rank in results)} == {12, 6}
    first = results[0]
    assert set(first["fsdp2"]["types"].values()) == {"DTensor"}
    for name in ("some_layers_sharded", "tp", "tp_in_replicas"):
        assert set(first[name]["types"].values()) == {"DTensor", "Parameter"}
    assert "P(sum)" in first["sp"]["placements"][0].replace("Partial", "P")
    # the losses of the ranks differ where their batches do, and only there
    assert first["fsdp2"]["losses"] != results[1]["fsdp2"]["losses"]
    assert first["tp"]["losses"] == results[1]["tp"]["losses"]


@pytest.mark.parametrize("name", DIVIDED)
def test_state_is_divided_as_the_parameters_are(results: list[dict[str, Any]], name: str) -> None:
    for rank in results:
        found = rank[name]
        for parameter, kinds in found["kinds"].items():
            if parameter == "scale":  # frozen
                assert kinds == {}
                continue
            expected = "DTensor" if found["types"][parameter] == "DTensor" else "Tensor"
            for buffer in ("exp_avg", "exp_avg_sq", "displacement"):
                assert kinds[buffer] == expected
            assert kinds["step"] == "Tensor"


def test_ranks_that_hold_nothing_count_the_steps(results: list[dict[str, Any]]) -> None:
    """Any of them may be the one that saves the count."""
    for rank in results:
        assert set(rank["fsdp2"]["steps"]) == {float(STEPS)}


def test_scalars_may_be_dtensors(results: list[dict[str, Any]]) -> None:
    """The loss in terms that are still to be added up, a norm likewise; an Inf at one rank."""
    for rank in results:
        numbers, dtensors = (rank["scalars_that_are_dtensors"][kind] for kind in (False, True))
        assert dtensors["norm is a DTensor"]
        assert (dtensors["k"], dtensors["skipped"]) == (5, 1)
        for found, expected in zip(dtensors["params"], numbers["params"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_the_state_of_one_process_is_divided(results: list[dict[str, Any]]) -> None:
    """All processes bring the same buffer at the same time: they are not named where they meet."""
    for rank in results:
        assert rank["state_of_one_process"] == {"buffers": 8 * 4, "wrong": []}


@pytest.mark.parametrize("name", ["adamc", "sgd"])
def test_what_averages_nothing_is_divided_too(results: list[dict[str, Any]], name: str) -> None:
    """Clipped to the norm of all, and continued from torch's state of the whole."""
    start = [p.detach() for p in Net().parameters()]
    for rank in results:
        found = rank["nothing_is_averaged"][name]
        for part, expected, first in zip(found["parts"], found["whole"], start, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-11)
            assert torch.equal(expected, first) == (first.shape == (1, WIDTH))  # frozen
        assert_same_bits(found["loaded"], found["state"])
        assert len(found["moments"]) == 8
        assert_same_bits(found["loaded moments"], found["moments"])


def test_rows_of_a_fixed_norm(results: list[dict[str, Any]]) -> None:
    """Where rows are whole each process brings its own to the norm; where they are cut it is refused."""
    for rank in results:
        found = rank["rows_of_a_fixed_norm"]
        for part, expected in zip(found["parts"], found["whole"], strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-11)
        assert len(found["norms"]) == 3
        for norms in found["norms"]:
            torch.testing.assert_close(norms, torch.full_like(norms, 1.5), rtol=1e-12, atol=0)
        assert found["refused"].keys() == {"columns", "tp"}
        for message in found["refused"].values():
            assert "in a group with a row_norm is a DTensor" in message
            assert "replicas, or shards along dimension 0" in message


def test_refusals(results: list[dict[str, Any]]) -> None:
    patterns = {
        "sums": "TypeError: parameter 0 is a DTensor with the placements .*redistribute it",
        "plain gradient": "TypeError: .* is a DTensor, and its gradient a plain tensor",
        "plain parameter": "TypeError: .* is a plain tensor, and its gradient a DTensor",
        "replaced": "ValueError: parameter 0 has the shape .* but no memory",
        "group": "ValueError: .* divided among 4 processes, and process_group has 1",
    }
    for rank in results:
        assert rank["refusals"].keys() == patterns.keys()
        for name, pattern in patterns.items():
            assert re.match(pattern, rank["refusals"][name]), rank["refusals"][name]


def test_a_step_of_dtensors_takes_the_host_little_longer(results: list[dict[str, Any]]) -> None:
    """Not the tens of milliseconds of DTensor's own dispatch, which a step of torch's optimizers pays."""
    seconds = results[0]["host_time"]
    assert seconds["dtensor"] < 6 * seconds["plain"]
