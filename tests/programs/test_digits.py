"""examples/digits.py: that it trains, what it leaves behind, and the recipe for BatchNorm at x."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import digits
import pytest
import torch
import typer
from digits_parts import data, optimizers, report
from digits_parts.model import make_model
from digits_parts.optimizers import Method, OptimizerName
from digits_parts.run import loss_and_accuracy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from typer.testing import CliRunner

from sfplus_kernels import AdamWScheduleFree, SGDScheduleFree

app = typer.Typer()
app.command()(digits.main)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small to share out, and the example itself takes one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "1000"})  # no line breaks
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\x1b\[[\d;]*m", "", result.output)  # no colours


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a short run of all optimizers."""
    runs = tmp_path_factory.mktemp("runs")
    code, output = invoke("--epochs", "3", "--seeds", "2", "--runs-dir", str(runs), "--name", "run")
    assert code == 0, output
    return runs / "run", output


# -- a run ----------------------------------------------------------------------------------------


def test_run_leaves_table_picture_and_results(ran: tuple[Path, str]) -> None:
    folder, output = ran
    assert f"Results are in {folder}" in output
    (row,) = [line for line in output.splitlines() if "test accuracy, %" in line]
    assert len(re.findall(r"\d+\.\d\d ± \d+\.\d\d", row)) == 3
    assert (folder / report.PICTURE).read_bytes().startswith(b"\x89PNG")
    results = json.loads((folder / report.RESULTS).read_text())
    seen = [(line["optimizer"], line["seed"], line["epoch"]) for line in results["lines"]]
    assert seen == [(n, s, e) for n in OptimizerName for s in range(2) for e in range(1, 4)]


def test_run_trains(ran: tuple[Path, str]) -> None:
    """From about 10 % of the images to most of them, in 57 steps."""
    for line in json.loads((ran[0] / report.RESULTS).read_text())["lines"]:
        if line["epoch"] == 3:
            assert line["accuracy"] > 0.8, line


def test_same_seed_gives_the_same_results(ran: tuple[Path, str], tmp_path: Path) -> None:
    arguments = ("--epochs", "3", "--seeds", "1", "--optimizer", "adamw-schedulefree")
    code, output = invoke(*arguments, "--runs-dir", str(tmp_path), "--name", "again")
    assert code == 0, output
    again = json.loads((tmp_path / "again" / report.RESULTS).read_text())["lines"]
    first = json.loads((ran[0] / report.RESULTS).read_text())["lines"]
    assert again == [
        line for line in first if line["optimizer"] == again[0]["optimizer"] and line["seed"] == 0
    ]


def test_help() -> None:
    code, output = invoke("--help")
    assert code == 0
    assert "--held-out" in output


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
def test_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(digits.__file__)), "--runs-dir", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--name", "stopped", "--seeds", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "stopped").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "nothing was kept" in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adam"], "adam"),
        (["--backend", "triton"], "triton"),
        (["--epochs", "0"], "epochs"),
        (["--batch", "1"], "batch"),
        (["--lr-factor", "inf"], "not a positive number"),
        (["--name", "a/b"], "not the name of a folder"),
        (["--name", "taken"], "take another name"),
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


# -- its parts ------------------------------------------------------------------------------------


def test_held_out_images_are_not_trained_on() -> None:
    test, validation = (data.load(held_out) for held_out in data.HeldOut)
    assert [len(labels) for labels in (test.train_labels, test.held_out_labels)] == [1258, 539]
    assert [len(labels) for labels in (validation.train_labels, validation.held_out_labels)] == [
        1006,
        252,
    ]
    # validation images are training images
    assert torch.equal(
        torch.cat((validation.held_out_images, validation.train_images)), test.train_images
    )
    assert test.train_images.min() == 0
    assert test.train_images.max() == 1


def test_batches_are_the_same_for_the_same_seed() -> None:
    first, second = (
        data.epoch_batches(100, 32, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert [len(batch) for batch in first] == [32, 32, 32]
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert len(set(torch.cat(first).tolist())) == 96


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (make_model(seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_cosine_schedule() -> None:
    method = Method(OptimizerName.SGD_COSINE, [nn.Parameter(torch.zeros(1))], steps=40)
    rates = []
    for _ in range(40):
        rates.append(method.optimizer.param_groups[0]["lr"])
        method.step()
    peak = optimizers.CHOICES[OptimizerName.SGD_COSINE].lr
    assert rates[:3] == pytest.approx([peak / 2, peak, peak])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[21] == pytest.approx(peak / 2)
    assert 0 < rates[-1] < 0.01 * peak


# -- BatchNorm at x -------------------------------------------------------------------------------


class Trained:
    """A model after 30 steps on the digits, in train mode. With beta 0.5, y is half-way between x and z."""

    def __init__(self, name: str) -> None:
        self.digits, self.model = data.load(), make_model(0)
        parameters = self.model.parameters()
        self.optimizer: SGDScheduleFree | AdamWScheduleFree
        if name == "sgd":
            self.optimizer = SGDScheduleFree(parameters, lr=3.0, momentum=0.5)
        else:
            self.optimizer = AdamWScheduleFree(parameters, lr=0.03, betas=(0.5, 0.999))
        self.optimizer.train()
        generator = torch.Generator().manual_seed(0)
        for _ in range(30):
            batch = torch.randint(1258, (64,), generator=generator)
            logits = self.model(self.digits.train_images[batch])
            self.optimizer.zero_grad()
            F.cross_entropy(logits, self.digits.train_labels[batch]).backward()
            self.optimizer.step()

    def batches(self) -> tuple[Tensor, ...]:
        return self.digits.train_images[:1024].split(256)


def statistics_of_x(trained: Trained) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of each BatchNorm's inputs, found layer by layer in float64 from x itself."""
    x = {name: trained.optimizer.iterates(p).x for name, p in trained.model.named_parameters()}
    batches = [images.double() for images in trained.batches()]
    found = []
    for index, layer in enumerate(trained.model):
        if isinstance(layer, nn.Conv2d):
            weight = x[f"{index}.weight"].double()
            batches = [F.conv2d(images, weight, padding=1) for images in batches]
        elif isinstance(layer, nn.BatchNorm2d):
            means = [images.mean((0, 2, 3)) for images in batches]
            variances = [images.var((0, 2, 3)) for images in batches]
            found.append((torch.stack(means).mean(0), torch.stack(variances).mean(0)))
            scale, shift = (x[f"{index}.{name}"].double() for name in ("weight", "bias"))
            batches = [
                F.batch_norm(images, None, None, scale, shift, training=True) for images in batches
            ]
        elif isinstance(layer, nn.ReLU | nn.MaxPool2d):
            batches = [layer(images) for images in batches]
    return found


@pytest.fixture(params=["sgd", "adamw"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """Each optimizer in turn."""
    return Trained(request.param)


def test_update_bn_within_averaged_gives_the_statistics_of_x(trained: Trained) -> None:
    y = [p.detach().clone() for p in trained.model.parameters()]
    with trained.optimizer.averaged():
        update_bn(trained.batches(), trained.model)
    for parameter, before in zip(trained.model.parameters(), y, strict=True):
        assert torch.equal(parameter, before)

    layers = [layer for layer in trained.model if isinstance(layer, nn.BatchNorm2d)]
    expected = statistics_of_x(trained)
    assert len(expected) == len(layers) == 3
    for layer, (mean, variance) in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.running_mean, mean.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, variance.float(), rtol=1e-4, atol=1e-5)
        assert layer.momentum == 0.1  # and the layer goes on gathering as before

    # those of y are others, so the comparison above can tell
    at_y = copy.deepcopy(trained.model)
    update_bn(trained.batches(), at_y)
    for index in (1, 4, 8):
        assert not torch.allclose(
            at_y[index].running_var, trained.model[index].running_var, rtol=0.01
        )


def test_x_with_other_statistics_is_evaluated_worse(trained: Trained) -> None:
    """With those gathered while training, and with those of y itself: the loss is over 1.3 times as large."""
    model, averaged = copy.deepcopy(trained.model), trained.optimizer.averaged_state_dict

    def at_x() -> tuple[float, float]:
        model.load_state_dict(averaged(trained.model))
        return loss_and_accuracy(model, trained.digits)

    loss_gathered, accuracy_gathered = at_x()
    update_bn(trained.batches(), trained.model)
    loss_of_y, accuracy_of_y = at_x()
    with trained.optimizer.averaged():
        update_bn(trained.batches(), trained.model)
    loss, accuracy = at_x()
    assert loss_gathered > 1.3 * loss
    assert loss_of_y > 1.3 * loss
    assert accuracy_gathered < accuracy - 0.01
    assert accuracy_of_y < accuracy - 0.01
