"""What averages nothing, and rows of a fixed norm, divided among four processes in every format of state: the
bytes of one process."""

import functools
from typing import Any

import pytest
import rows_worker as worker
import torch
from formats_worker import DTYPES
from support import assert_same_bits
from support.ranks import results_of

WORLD = 4
pytestmark = pytest.mark.slow


@functools.cache
def whole_run(case: str) -> dict[str, Any]:
    state_format, _, name, make = worker.CASES[case]
    return worker.trained(state_format, DTYPES[name], None, [], make)


@pytest.mark.parametrize("case", worker.CASES)
def test_the_bytes_of_one_process(case: str) -> None:
    for rank in results_of(worker, WORLD):
        assert_same_bits(rank["divided"][case], whole_run(case))


def test_the_formats_are_what_they_say() -> None:
    def dtypes(case: str) -> set[torch.dtype]:
        return {t.dtype for t in whole_run(case)["tensors"]}

    for what in (*worker.PLAIN, *(f"rows of {each}" for each in worker.ROWS)):
        assert any(dtype.itemsize == 2 for dtype in dtypes(f"{what}, 16bit, rows, float32"))
    for what in ("adamw", "adamc", "rows of averaged", "rows of adamw"):
        assert {torch.uint8, torch.int8} <= dtypes(f"{what}, 8bit, rows, bfloat16")


def test_rows_have_their_norm() -> None:
    """Those of the weights where nothing is averaged, in float32."""
    for state_format in ("float32", "16bit", "8bit"):
        for p in whole_run(f"rows of adamw, {state_format}, rows, float32")["tensors"][:4]:
            if p.dim() > 1:
                norms = p.double().flatten(1).norm(dim=1)
                torch.testing.assert_close(norms, torch.full_like(norms, 2.0), rtol=1e-6, atol=0)


def test_rows_that_are_cut_are_refused() -> None:
    for rank in results_of(worker, WORLD):
        assert rank["refused"].keys() == {"float32", "16bit", "8bit"}
        for message in rank["refused"].values():
            assert "in a group with a row_norm is a DTensor with the placements" in message
            assert "expected whole rows on each process" in message
