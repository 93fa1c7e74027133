"""Gradient norms from files of each kind, and from the metrics of a run."""

import json
from pathlib import Path

import pytest
import torch

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.schedules import read_norms, refine

NORMS = [3.0, 2.0, 1.5, 1.25]


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"step": k, "grad_norm": g, "grad_l1": 10 * g} for k, g in enumerate(NORMS)]
    lines.insert(2, {"step": 1, "validation": 0.5})
    path = write_lines(tmp_path / "run.jsonl", lines)
    assert read_norms(path) == NORMS
    assert read_norms(path, norm="l1") == [10 * g for g in NORMS]
    assert read_norms(str(path), column="grad_l1") == [10 * g for g in NORMS]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("step,train/grad_norm\n" + "".join(f"{k},{g}\n" for k, g in enumerate(NORMS)))
    assert read_norms(path) == NORMS


def test_trainer_state(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    log = [{"step": 10 * k, "loss": 1.0, "grad_norm": g} for k, g in enumerate(NORMS)]
    path.write_text(json.dumps({"log_history": [*log, {"step": 40, "eval_loss": 2.0}]}))
    assert read_norms(path) == NORMS


def test_metrics_of_a_run(tmp_path: Path) -> None:
    """As json.dumps writes them, line by line; the norms are those of the gradients."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = AdamCScheduleFreePlus([weight], lr=0.1)
    optimizer.train()
    true_norms = []
    with (tmp_path / "run.jsonl").open("w") as file:
        for _ in range(5):
            loss = weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
            assert weight.grad is not None
            true_norms.append([float(weight.grad.norm()), float(weight.grad.abs().sum())])
            file.write(json.dumps(optimizer.metrics()) + "\n")
    for place, norm in enumerate(("l2", "l1")):
        found = read_norms(tmp_path / "run.jsonl", norm=norm)  # type: ignore[arg-type]
        assert found == pytest.approx([pair[place] for pair in true_norms], rel=1e-6)
        assert refine(found)[-1] == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.txt", "", "expected .jsonl, .csv, or .json"),
        ("run.jsonl", "3\n", "is not what its name says"),
        ("run.jsonl", "{\n", "is not what its name says"),
        ("run.json", "{}", "with log_history"),
        ("run.jsonl", "", "no column grad_norm or train/grad_norm.*it has no lines"),
        ("run.csv", "step,loss\n1,2\n", "it has step, loss. Say which with column="),
        ("run.csv", "step,grad_norm\n1,2\n2,2\n2,3\n", "step 2 comes after step 2"),
        ("run.csv", "step,grad_norm\n1,two\n", "could not convert.*expected numbers"),
        (
            "run.csv",
            "step,grad_norm\n1,2\n2,2\n1,3\n",
            "step 1 comes after step 2; expected one run",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_norms(path)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.csv is not a file"):
        read_norms(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="norm='max'; expected 'l2' or 'l1'"):
        read_norms(tmp_path / "none.csv", norm="max")  # type: ignore[arg-type]
