"""State in 16 and in 8 bits, divided among four processes in every way: the bytes of one process."""

import functools
from typing import Any

import formats_worker as worker
import pytest
import torch
from support import assert_same_bits
from support.ranks import results_of

WORLD = 4


@functools.cache
def whole_run(state_format: str, name: str) -> dict[str, Any]:
    return worker.trained(state_format, worker.DTYPES[name], None, [])


@pytest.mark.parametrize("name", worker.DTYPES)
@pytest.mark.parametrize("kind", worker.PLACEMENTS)
@pytest.mark.parametrize("state_format", worker.SHAPES)
def test_the_bytes_of_one_process(state_format: str, kind: str, name: str) -> None:
    for rank in results_of(worker, WORLD):
        found = rank["divided_in_every_way"][f"{state_format}, {kind}, {name}"]
        assert_same_bits(found, whole_run(state_format, name))


def test_it_is_rounded_by_chance() -> None:
    """The bytes would be others if the random numbers were."""
    e = whole_run("16bit", "float32")["tensors"][len(worker.SHAPES["16bit"])]
    assert e.dtype == torch.float16 or e.dtype == torch.bfloat16
    assert len(e.unique()) > 10


def test_codes_are_kept() -> None:
    dtypes = {t.dtype for t in whole_run("8bit", "bfloat16")["tensors"]}
    assert {torch.uint8, torch.int8} <= dtypes


@pytest.mark.parametrize("how", ["rows", "replicas", "one process"])
def test_a_checkpoint_of_codes_in_other_parts(how: str) -> None:
    for rank in results_of(worker, WORLD):
        found = rank["reloaded"]
        assert sum("codes" in name for name in found["saved"]) == 4
        assert_same_bits(found[how], found["saved"])


def test_parts_that_cut_blocks() -> None:
    """Are kept in 16 bits: a sharded checkpoint of codes is not for them, a whole one is."""
    for rank in results_of(worker, WORLD):
        found = rank["reloaded"]
        assert "narrow.exp_avg" in found["refused"]
        assert found["in 16 bits"] == ["torch.bfloat16"] * 3
        for name, value in found["columns"].items():
            assert_same_bits(value, found["saved"][name])
        assert "wide.exp_avg_codes" in found["columns"]
        assert "narrow.exp_avg_codes" not in found["columns"]


@pytest.mark.parametrize(
    "how", ["1 processes", "2 processes", "3 processes", "columns", "one process"]
)
def test_a_checkpoint_in_another_format(how: str) -> None:
    """float32 out of 8 bits, loaded into 8 bits, or 16, by processes that have other parts."""
    for number, rank in enumerate(results_of(worker, WORLD)):
        found = rank["in_another_format"]
        if how[0].isdigit() and number >= int(how[0]):
            assert how not in found
            continue
        for name, value in found[how].items():
            if (how, name) == ("columns", "narrow.y"):  # to the last place that float32 has halfway
                assert torch.allclose(value, found["saved"][name], rtol=2**-23, atol=0)
            else:
                assert_same_bits(value, found["saved"][name])
        assert "wide.exp_avg_codes" in found[how]
        assert ("narrow.exp_avg_codes" in found[how]) == (how != "columns")


def test_replicas_stay_the_same_bytes() -> None:
    first, *others = (rank["replicas"] for rank in results_of(worker, WORLD))
    assert first["formats"] == {"8bit": 8192, "16bit": 160}
    for other in others:
        assert_same_bits(other["tensors"], first["tensors"])


def test_another_seed_on_another_process_is_refused() -> None:
    for number, rank in enumerate(results_of(worker, WORLD)):
        found = rank["replicas"]
        for message in (found["refused"], found["loaded"]):
            assert f"rounding_seed is {number} here and another on other processes" in message
            assert "pass the same one everywhere" in message
        assert found["unchanged"]
        assert found["k"] == 201


def test_a_model_that_is_divided_too_late() -> None:
    for rank in results_of(worker, WORLD):
        message = rank["divided_too_late"]
        assert "(45, 96) is divided so that this process holds 45 x 24 of it, which cuts" in message
        assert "make a new optimizer after the model is divided" in message
