"""Loss curves from files of each kind."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sfplus_kernels.forecast import CannotForecast, read

STEPS = [float(k) for k in range(1, 61)]
LOSSES = [5 / (k + 3) ** 0.5 + 1 for k in STEPS]


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"step": k, "loss": v} for k, v in zip(STEPS, LOSSES, strict=True)]
    lines.insert(5, {"step": 5, "validation": 1.0})  # no loss: not a line of training
    curve = read(write_lines(tmp_path / "m.jsonl", lines))
    assert curve.step.tolist() == STEPS
    assert curve.loss.tolist() == LOSSES
    assert curve.rate is None


def test_json_lines_of_two_runs_and_other_names(tmp_path: Path) -> None:
    lines = [
        {"run": run, "n": k, "nll": v + run, "learning_rate": 0.1}
        for run in (1, 2)
        for k, v in zip(STEPS, LOSSES, strict=True)
    ]
    path = write_lines(tmp_path / "m.jsonl", lines)
    with pytest.raises(CannotForecast, match="--where key=value"):
        read(path, step="n", loss="nll")
    curve = read(path, step="n", loss="nll", where={"run": "2"})
    np.testing.assert_allclose(curve.loss, np.array(LOSSES) + 2)
    assert curve.rate is not None
    assert set(curve.rate) == {0.1}


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["global_step", "train_loss", "lr"])
        writer.writerows([k, v, 0.5 if k > 2 else ""] for k, v in zip(STEPS, LOSSES, strict=True))
    curve = read(path)
    assert curve.loss.tolist() == LOSSES
    assert curve.rate is not None
    assert np.isnan(curve.rate[0])
    assert curve.rate[-1] == 0.5


def test_trainer_state_puts_means_at_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    log = [
        {"step": 10 * k, "loss": v, "learning_rate": 1e-3}
        for k, v in zip(STEPS, LOSSES, strict=True)
    ]
    log.insert(3, {"step": 30, "eval_loss": 1.0})
    log.append({"step": 600, "train_loss": 1.2, "train_runtime": 5.0})  # the Trainer's last line
    path.write_text(json.dumps({"log_history": log, "global_step": 600}))
    curve = read(path)
    assert curve.step[:2].tolist() == [5, 15]
    assert curve.loss.tolist() == LOSSES
    assert curve.rate is not None


@pytest.mark.parametrize("whole_folder", [True, False])
def test_tensorboard(tmp_path: Path, whole_folder: bool) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path))
    for k, v in zip(STEPS, LOSSES, strict=True):
        values = [
            Summary.Value(tag="train/loss", simple_value=v),
            Summary.Value(tag="train/learning_rate", simple_value=0.25),
        ]
        writer.add_event(Event(step=int(k), wall_time=k, summary=Summary(value=values)))
    writer.close()
    path = tmp_path if whole_folder else next(tmp_path.iterdir())
    curve = read(path)
    assert curve.step.tolist() == STEPS
    np.testing.assert_allclose(curve.loss, LOSSES, rtol=1e-6)
    assert curve.rate is not None
    assert set(curve.rate) == {0.25}


def test_tensorboard_without_its_package_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(CannotForecast, match="pip install tensorboard"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("m.jsonl", "{", "not what its name says"),
        ("m.json", '{"a": 1}', "log_history"),
        ("m.txt", "1 2", "expected .jsonl"),
        ("m.jsonl", '{"step": 1, "nll": 2}\n', "no column loss or .*it has step, nll"),
        ("m.csv", "", "no column step.*no lines"),
        ("m.csv", "step,loss\n1,high\n", "column loss.*expected numbers"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CannotForecast, match=reason):
        read(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CannotForecast, match="does not exist"):
        read(tmp_path / "m.jsonl")
