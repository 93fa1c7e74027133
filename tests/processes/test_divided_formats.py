"""State in 16 bits, divided among four processes in every way: the bytes of one process."""

import functools
from typing import Any

import formats_worker as worker
import pytest
import torch
from support import assert_same_bits
from support.ranks import results_of

WORLD = 4


@functools.cache
def whole_run(name: str) -> dict[str, Any]:
    return worker.trained(worker.DTYPES[name], None, [])


@pytest.mark.parametrize("name", worker.DTYPES)
@pytest.mark.parametrize("kind", worker.PLACEMENTS)
def test_the_bytes_of_one_process(kind: str, name: str) -> None:
    for rank in results_of(worker, WORLD):
        found = rank["divided_in_every_way"][f"{kind}, {name}"]
        assert_same_bits(found, whole_run(name))


def test_it_is_rounded_by_chance() -> None:
    """The bytes would be others if the random numbers were."""
    e = whole_run("float32")["tensors"][len(worker.SHAPES)]
    assert e.dtype == torch.float16 or e.dtype == torch.bfloat16
    assert len(e.unique()) > 10
