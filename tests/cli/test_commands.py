"""python -m sfplus_kernels: the commands, their output and their refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from sfplus_kernels.__main__ import main
from sfplus_kernels.forecast import fit, read
from sfplus_kernels.forecast.least_squares import shape


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Two runs in one file, the second under a schedule."""
    step = np.arange(1.0, 1001.0)
    loss = shape(step, 15, 40, 1.2) + np.random.default_rng(0).normal(0, 0.05, 1000)
    path = tmp_path / "metrics.jsonl"
    lines = [{"run": "free", "step": k, "loss": v} for k, v in zip(step, loss, strict=True)]
    lines += [
        {"run": "linear", "step": k, "loss": v, "lr": 1001 - k}
        for k, v in zip(step, loss, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_no_command_is_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    first = capsys.readouterr().out
    main(["report"])
    assert first == capsys.readouterr().out
    assert "backend eager" in first


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["forecast", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m sfplus_kernels")


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["foo"])
    assert stopped.value.code == 2
    assert "'report', 'export', 'forecast', 'memory'" in capsys.readouterr().err


def test_forecast(metrics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "forecast.png"
    arguments = ["forecast", str(metrics), "--where", "run=free", "--at", "5000", "--for", "1.5"]
    main([*arguments, "--for", "0.1", "--png", str(picture)])
    output = capsys.readouterr().out
    found = fit(read(metrics, where={"run": "free"}))
    low, high = found.interval(5000)
    assert f"at step 5,000: {found.at(5000):.4f}   (90%: {low:.4f} to {high:.4f})" in output
    assert f"loss 1.5 at step {found.steps_for(1.5)[0]:,.0f} " in output
    assert "loss 0.1 at step never" in output
    assert f"it goes to c = {found.fit.c:.4f}" in output
    assert "A schedule cannot be told from the loss alone" in output
    plot = [line for line in output.splitlines() if "|" in line]
    assert len(plot) == 18
    assert any("o" in line for line in plot)
    assert any("*" in line and ":" in line for line in plot)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--where", "run=linear"], "learning rate still changes"),
        ([], "choose one"),
        (["--where", "run"], "expected KEY=VALUE"),
        (["--where", "run=free", "--at", "-1"], "expected positive numbers of steps"),
        (["--where", "run=none"], "it has no lines"),
    ],
)
def test_no_forecast_says_why(metrics: Path, more: list[str], reason: str) -> None:
    with pytest.raises(SystemExit, match=reason):
        main(["forecast", str(metrics), *more])
