"""examples/train_lm.py: what a run leaves behind, and that stopping and resuming changes no bit."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_lm
from common import Interrupt
from lm import data, files, report
from lm.model import GPT
from lm.run import Trainer
from lm.settings import OptimizerName, Settings
from train_lm_runs import ENVIRONMENT, STEPS, TINY, invoke, metrics, train


@pytest.fixture(scope="module", autouse=True)
def corpus() -> Iterator[None]:
    """Read the library once, not for every run."""
    read = data.Corpus.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Corpus, "load", lambda: read)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same_checkpoint(left: Path, right: Path) -> None:
    first, second = files.load_checkpoint(left), files.load_checkpoint(right)
    assert first is not None
    assert second is not None
    assert (first["name"], first["done"]) == (second["name"], second["done"])
    assert first["model"].keys() == second["model"].keys()
    for key, weight in first["model"].items():
        assert torch.equal(weight, second["model"][key]), key
    assert torch.equal(first["generator"], second["generator"])
    states = first["optimizer"]["state"], second["optimizer"]["state"]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][index][key])), key
    assert first["optimizer"]["param_groups"] == second["optimizer"]["param_groups"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both optimizers that nothing interrupted."""
    return train(tmp_path_factory.mktemp("runs"), "whole")


# -- a run ----------------------------------------------------------------------------------------


def test_files(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoint.pt", "loss.png"}
    assert (whole / report.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert json.loads((whole / "config.json").read_text())["steps"] == STEPS


def test_metrics(whole: Path) -> None:
    runs = files.read_metrics(whole)
    assert list(runs) == ["schedule-free-plus", "adamw"]
    for lines in runs.values():
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        assert all(0 < line["optimizer_seconds"] < line["seconds"] for line in lines)
        evaluated = [line["step"] for line in lines if "validation_loss_y" in line]
        assert evaluated == [8, 16, 24]
    ours, adamw = runs.values()
    assert [line["step"] for line in ours if "gamma" in line] == [4, 8, 12, 16, 20, 24]
    assert all(line["gamma"] > 0 for line in ours if "gamma" in line)
    assert ours[-1]["validation_loss_x"] != ours[-1]["validation_loss_y"]
    assert "validation_loss_x" not in adamw[-1]
    assert ours[0]["loss"] == adamw[0]["loss"]  # the same weights, the same text


def test_loss_falls(tmp_path: Path) -> None:
    folder = train(tmp_path, "longer", steps=120)
    for name, lines in files.read_metrics(folder).items():
        losses = [line["loss"] for line in lines]
        assert sum(losses[-10:]) / 10 < losses[0] - 0.5, name
        assert lines[-1]["validation_loss_y"] < losses[0] - 0.5, name


def test_adamw_schedule(tmp_path: Path) -> None:
    folder = train(tmp_path, "rates", "--optimizer", "adamw", "--log-every", "1", steps=20)
    rates = [line["lr"] for line in metrics(folder)]
    assert rates[:6] == pytest.approx([0.03 * k / 6 for k in range(1, 7)])
    assert rates[6:] == pytest.approx([0.03 * k / 14 for k in range(14, 0, -1)])


def test_schedule_free_adamw(tmp_path: Path) -> None:
    arguments = ("--optimizer", "adamw-schedulefree", "--log-every", "1")
    folder = train(tmp_path, "alone", *arguments, steps=120)
    (lines,) = files.read_metrics(folder).values()
    losses = [line["loss"] for line in lines]
    assert sum(losses[-10:]) / 10 < losses[0] - 0.5
    assert lines[-1]["validation_loss_x"] < losses[0] - 0.5
    # warmup over three tenths of the run, and no decay after it
    peak = max(line["gamma"] for line in lines)
    assert [line["gamma"] for line in lines] == pytest.approx(
        [peak * min(1, k / 36) for k in range(1, 121)]
    )
    assert (folder / report.PICTURE).exists()


def test_state_bytes(whole: Path) -> None:
    checkpoint = files.load_checkpoint(whole)
    assert checkpoint is not None
    count = sum(weight.numel() for weight in checkpoint["model"].values())
    ours, adamw = files.read_metrics(whole).values()
    assert ours[-1]["state_bytes"] >= 3 * 4 * count
    # two moments, and a step count for each tensor
    assert adamw[-1]["state_bytes"] == 2 * 4 * count + 4 * len(checkpoint["model"])


def test_lr_factor(tmp_path: Path) -> None:
    arguments = ("--optimizer", "schedule-free-plus", "--log-every", "1")
    one = metrics(train(tmp_path, "one", *arguments, steps=2))[0]["gamma"]
    half = metrics(train(tmp_path, "half", *arguments, "--lr-factor", "0.5", steps=2))[0]["gamma"]
    assert half == pytest.approx(one / 2)


# -- bits -----------------------------------------------------------------------------------------


def test_seed(whole: Path, tmp_path: Path) -> None:
    same, other = train(tmp_path, "same"), train(tmp_path, "other", "--seed", "1")
    assert metrics(same) == metrics(whole)
    assert_same_checkpoint(same, whole)
    assert metrics(other)[0]["loss"] != metrics(whole)[0]["loss"]
    first, second = files.load_checkpoint(other), files.load_checkpoint(whole)
    assert first is not None
    assert second is not None
    assert not torch.equal(first["generator"], second["generator"])
    weights = [GPT(32, 1, 16, seed).head.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_folder_of_a_killed_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies between checkpoints takes the steps since the last one again."""
    step = Trainer._step
    first_try = []

    def step_until_it_dies(self: Trainer) -> None:
        step(self)
        first_try.append(self.name)
        if first_try.count(OptimizerName.ADAMW) == 14:  # its last checkpoint was at 8
            raise MemoryError

    monkeypatch.setattr(Trainer, "_step", step_until_it_dies)
    with pytest.raises(MemoryError):
        train(tmp_path, "killed")
    monkeypatch.undo()
    folder = tmp_path / "killed"
    assert len(metrics(folder)) == STEPS + 12
    assert invoke("--resume", str(folder))[0] == 0
    assert metrics(folder) == metrics(whole)
    assert_same_checkpoint(folder, whole)


def test_stopped_before_its_first_checkpoint(whole: Path, tmp_path: Path) -> None:
    folder = train(tmp_path, "early")
    (folder / files.CHECKPOINT).unlink()
    assert invoke("--resume", str(folder))[0] == 0
    assert metrics(folder) == metrics(whole)


def test_resume_of_a_finished_run(whole: Path, tmp_path: Path) -> None:
    folder = train(tmp_path, "done")
    (folder / report.PICTURE).unlink()
    code, output = invoke("--resume", str(folder))
    assert code == 0
    assert "adamw" in output
    assert (folder / report.PICTURE).exists()
    assert metrics(folder) == metrics(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
def test_ctrl_c(tmp_path: Path) -> None:
    """In a process of its own, stopped in the middle and resumed: the bits of a whole run."""
    command = [sys.executable, str(Path(train_lm.__file__))]
    options = [*TINY, "--steps", "300", "--optimizer", "schedule-free-plus"]
    options += ["--eval-every", "50", "--runs-dir", str(tmp_path)]
    process = subprocess.Popen(
        [*command, *options, "--name", "stopped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )
    folder = tmp_path / "stopped"
    deadline = time.monotonic() + 60
    while not (folder / files.CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"--resume {folder}" in output
    checkpoint = files.load_checkpoint(folder)
    assert checkpoint is not None
    assert 50 <= checkpoint["done"] < 300
    assert len(metrics(folder)) == checkpoint["done"]

    code, output = invoke("--resume", str(folder))
    assert code == 0, output
    code, output = invoke(*options, "--name", "whole")
    assert code == 0, output
    # Ctrl-C comes at any step, so the lines agree in all but the times
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert_same_checkpoint(folder, tmp_path / "whole")


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """A shell has its background jobs, and what they start, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_second_ctrl_c_kills() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_checkpoint_is_replaced_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.save_checkpoint(tmp_path, {"done": 1})

    def fill_the_disk(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="no space"):
        files.save_checkpoint(tmp_path, {"done": 2})
    assert files.load_checkpoint(tmp_path) == {"done": 1}


# -- bad options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "sgd"], "sgd"),
        (["--backend", "cuda-graph"], "cuda-graph"),
        (["--steps", "0"], "steps"),
        (["--seed", "-1"], "seed"),
        (["--lr-factor", "0"], "not a positive number"),
        (["--lr-factor", "nan"], "not a positive number"),
        (["--dim", "48"], "not a multiple of 32"),
        (["--device", "abacus"], "abacus"),
        (["--name", "a/b"], "not the name of a folder"),
        (["--name", ".."], "not the name of a folder"),
        (["--name", "taken"], "exists"),
        (["--resume", "empty"], "has no config.json"),
    ],
)
def test_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    code, output = invoke(*arguments)
    assert code == 2
    assert message in output
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["taken"]


def test_unavailable_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_lm, "make_method", make_method_without_backend)
    code, output = invoke("--backend", "triton", "--runs-dir", str(tmp_path))
    assert code == 2
    assert "cannot run here" in output
    assert not list(tmp_path.iterdir())


def make_method_without_backend(*arguments: object) -> None:
    raise RuntimeError("backend 'triton' cannot run here")


def test_resume_keeps_its_settings(whole: Path) -> None:
    code, output = invoke("--resume", str(whole), "--steps", "5", "--seed", "3")
    assert code == 2
    assert "leave out steps, seed" in output


def test_resume_with_other_text_or_no_settings(whole: Path, tmp_path: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"corpus": "another"}))
    code, output = invoke("--resume", str(tmp_path))
    assert code == 2
    assert "another Python version" in output
    (tmp_path / "config.json").write_text("[]")
    code, output = invoke("--resume", str(tmp_path))
    assert code == 2
    assert "not the settings of a run" in output


def test_config_round_trip(whole: Path, tmp_path: Path) -> None:
    settings = Settings.load(whole)
    assert settings.optimizers == (OptimizerName.SCHEDULE_FREE_PLUS, OptimizerName.ADAMW)
    settings.save(tmp_path)
    assert Settings.load(tmp_path) == settings


def test_library_without_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zipped.py").touch()
    with pytest.raises(RuntimeError, match="found 1 Python files"):
        data.source_files(tmp_path)
    monkeypatch.setattr(data.Corpus, "load", lambda: data.source_files(tmp_path))
    code, output = invoke()
    assert code == 1
    assert "found 1 Python files" in output
