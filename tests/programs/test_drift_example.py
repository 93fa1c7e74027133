"""examples/drift.py on a run of some steps."""

from pathlib import Path

import drift
import pytest


def test_a_short_run(tmp_path: Path) -> None:
    lines = list(drift.train(drift.Name.ADAMC, 30, seed=0))
    assert lines == list(drift.train(drift.Name.ADAMC, 30, seed=0))
    assert [line["step"] for line in lines] == list(range(1, 31))
    # lr, and with it the step, is 0 in the first step of a warmup
    assert all(line["rotation"] > 0 for line in lines[1:])
    # of weights that a normalisation follows rotation is all: they hardly grow
    assert lines[-1]["weight_norm"] == pytest.approx(lines[0]["weight_norm"], rel=0.1)
    parts = drift.means(lines)
    assert len(parts) == 30
    drift.draw({"AdamC": parts}, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 10_000
    assert drift.table({"AdamC": parts}).row_count == 2
    assert len(drift.means([*lines, *lines] * 10)) == 100
