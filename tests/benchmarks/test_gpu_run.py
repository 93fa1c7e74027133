"""``make gpu`` without a GPU: that its parts run, are cut off, and leave what they should."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from sfplus_kernels.backends.native import _C

sys.path.insert(0, str(ROOT / "tools"))
import every_kernel
import gpu_run


@pytest.fixture
def started(tmp_path: Path) -> gpu_run.Run:
    return gpu_run.Run(tmp_path / "out", 600.0, "cpu")


def test_the_report_names_machine_versions_and_commit(
    started: gpu_run.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFPLUS_COMMIT", "abc123")
    assert gpu_run.report(started).startswith("cuda: ")
    about = json.loads((started.out / "about.json").read_text())
    assert about["commit"] == "abc123"
    assert "pytest" in about["packages"]
    assert re.search(r"^backend cuda", (started.out / "report.txt").read_text(), re.MULTILINE)


def test_tests_leave_their_results(started: gpu_run.Run) -> None:
    said = gpu_run.tests(started)
    assert "skipped" in said or "passed" in said
    assert "<testsuite" in (started.out / "gpu-tests.xml").read_text()


def test_a_part_that_takes_too_long_is_cut_off_and_what_it_said_is_kept(
    started: gpu_run.Run,
) -> None:
    program = "import time; print('begun', flush=True); time.sleep(60)"
    assert started.call("log.txt", [sys.executable, "-c", program], 2.0) == 124
    said = (started.out / "log.txt").read_text()
    assert "begun" in said
    assert "cut off after 2 s" in said


def test_a_tool_that_is_not_there_is_no_end_of_the_run(started: gpu_run.Run) -> None:
    assert "memcheck status" in gpu_run.sanitizers(started)
    assert "status 127" in (started.out / "memcheck.txt").read_text()


def row(name: str, percent: float | None, section: str = "pass") -> dict[str, Any]:
    return {"section": section, "name": name, "percent_of_roofline": percent}


def test_every_prediction_gets_a_verdict(started: gpu_run.Run) -> None:
    predicted = gpu_run.predictions()
    assert len(predicted) >= 5
    assert all(0 < least < expected <= 105 for expected, least in predicted.values())
    (started.out / "bench").mkdir()
    names = list(predicted)
    rows = [row(names[0], predicted[names[0]][1] + 1), row(names[1], predicted[names[1]][1] - 1)]
    rows += [row(names[2], None), row(names[3], 99.0, "step")]
    (started.out / "bench" / "results.json").write_text(json.dumps({"rows": rows}))
    said = gpu_run.verdicts(started)
    assert said == f"1 as predicted, 1 missed, {len(predicted) - 2} not measured"
    table = (started.out / "verdicts.md").read_text()
    assert len(table.splitlines()) == len(predicted) + 2


def test_parts_are_chosen_in_order_and_begun_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def part(name: str, said: str) -> Any:
        return lambda run: begun.append(name) or said

    def broken(run: gpu_run.Run) -> str:
        raise OSError("no disk")

    monkeypatch.setattr(
        gpu_run,
        "PARTS",
        {"build": broken, "report": part("report", "fine"), "tests": part("tests", "ok")},
    )

    def run(*arguments: str) -> dict[str, str]:
        monkeypatch.setattr(
            sys, "argv", ["gpu_run", "--rehearse", "--out", str(tmp_path), *arguments]
        )
        with pytest.raises(SystemExit) as left:
            gpu_run.main()
        outcomes: dict[str, str] = json.loads((tmp_path / "outcomes.json").read_text())
        failed = any(("failed" in s) or ("no time" in s) for s in outcomes.values())
        assert bool(left.value.code) == failed
        return outcomes

    outcomes = run("--parts", "build,tests,report")
    assert begun == ["tests", "report"]
    assert "no disk" in outcomes["build"]
    assert outcomes["tests"].startswith("ok")
    assert "no time left" in run("--parts", "report", "--seconds", "5")["report"]
    assert run("--parts", "report")["report"].startswith("fine")
    monkeypatch.setattr(sys, "argv", ["gpu_run", "--parts", "brew"])
    with pytest.raises(SystemExit):
        gpu_run.main()
    assert "no part is called 'brew'" in capsys.readouterr().err


@pytest.mark.skipif(bool(_C.CUDA_MISSING), reason=f"no CUDA kernels: {_C.CUDA_MISSING}")
def test_sanitizers_see_each_update_once() -> None:
    """What --few leaves out has a kernel of its own nowhere."""
    kept = {"mve": "adam", "ve": "no_momentum", "e": "sgd"}
    kept |= {"mv": "plain_adam", "m": "plain_momentum", "": "plain_sgd"}
    names = [
        f"update_{kept[buffers]}_{param}_{grad}".replace("torch.", "")
        for param, grad, buffers in every_kernel.kinds(few=True)
    ]
    small = ("half", "quarter")
    there = {name for name in _C.CUDA_KERNELS if name.split("_")[0] == "update"}
    assert sorted(names) == sorted(n for n in there if not any(word in n for word in small))
