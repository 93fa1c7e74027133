"""examples/state_formats.py on a run of some steps: what is compared, and the arithmetic of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from anytime_parts import corpus as text
from anytime_parts.corpus import Corpus
from state_format_parts import run as running
from state_format_parts.report import COLUMNS, difference, draw, load, rows
from state_format_parts.run import Run, train
from support import ROOT

RESULTS = ROOT / "examples" / "state_format_results.jsonl"


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(text, "VALIDATION_WINDOWS", 8)
    monkeypatch.setattr(running, "SEQUENCES", 2)
    letters = torch.randint(97, 105, (12_000,), generator=torch.Generator().manual_seed(0))
    return Corpus(letters[:11_000].to(torch.uint8), letters[11_000:].to(torch.uint8))


def test_every_format_sees_the_same_and_differs_by_its_roundings(
    corpus: Corpus, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    for state_format in ("float32", "16bit", "8bit"):
        line = train(Run(state_format, "float32", seed=1, steps=40, look=10), corpus)
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
    plain, half, quarter = load(file)
    for result in (plain, half, quarter):
        assert result["step"] == [10, 20, 30, 40]
        assert result["training_loss"][-1] < 4 < 5 < result["training_loss"][0]
        # of steps 1 to 10; in the first the state has rounded nothing yet
        assert result["training_loss"][0] == pytest.approx(plain["training_loss"][0], abs=0.05)
    assert half["validation_loss"] != plain["validation_loss"]
    assert quarter["validation_loss"] != half["validation_loss"]
    assert quarter["elements"] == {"8bit": 24_576, "16bit": 6_240}
    draw([plain, half, quarter], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_a_loss_of_a_model_in_bfloat16_is_in_float32(corpus: Corpus) -> None:
    line = train(Run("8bit", "bfloat16", seed=0, steps=2, look=1), corpus)
    assert len(line["training_loss"]) == 2
    loss = torch.tensor(line["training_loss"])
    assert not torch.equal(loss, loss.bfloat16().float())


def result(state_format: str, seed: int, final: float, steps: int = 20) -> dict[str, Any]:
    return {"run": Run(state_format, "float32", seed, steps), "validation_loss": [9.0, final]}


def test_a_format_is_compared_with_float32_seed_by_seed() -> None:
    base = {seed: result("float32", seed, 2.0 + seed) for seed in range(3)}
    runs = {
        seed: result("8bit", seed, 2.0 + seed + more)
        for seed, more in enumerate((0.01, 0.03, 0.05))
    }
    mean, error = difference(runs, base)
    assert mean == pytest.approx(0.03)
    assert error == pytest.approx(0.02 / 3**0.5)  # the seeds' own differences are left out
    assert difference({0: runs[0]}, base) == (pytest.approx(0.01), None)
    assert difference(runs, {}) == (None, None)
    short = result("8bit", 0, 7.0, steps=10)  # a rehearsal does not count
    table = [
        dict(zip(COLUMNS, row, strict=True))
        for row in rows([short, *base.values(), *runs.values()])
    ]
    assert [row["format"] for row in table] == ["float32", "8bit"]
    assert table[1]["loss at the end, by seed"] == "2.0100, 3.0300, 4.0500"
    assert (table[1]["more than float32"], table[1]["error"]) == ("+0.0300", "0.0115")


def test_the_committed_runs_are_whole_and_told_in_the_docs() -> None:
    results = load(RESULTS)
    assert {len(r["validation_loss"]) for r in results} == {20}
    settings = {json.dumps([r["settings"], r["corpus"], r["bytes_per_step"]]) for r in results}
    assert len(settings) == 1  # else they could not be compared
    docs = (ROOT / "docs" / "memory.md").read_text()
    for dtype, state_format, *figures in rows(results):
        assert f"| {' | '.join([dtype, f'`{state_format}`', *figures])} |" in docs
