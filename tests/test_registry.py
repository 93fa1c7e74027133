"""Which backend is chosen, and what is said when one cannot be had."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from support import make_params, run

from sfplus_kernels import AdamCScheduleFreePlus, backends
from sfplus_kernels.backends import registry

CPU = torch.device("cpu")


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(
            registry._RECORDS,
            name,
            registry.BackendRecord(
                **{
                    **vars(registry._RECORDS[name]),
                    "unavailable_reason": lambda _: "hidden by a test",
                }
            ),
        )


def test_cpu_is_chosen_for_cpu_tensors_and_eager_is_the_last_resort(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert backends.select(None, CPU)[0] == "cpu"
    hide(monkeypatch, "cpu")
    assert backends.select(None, CPU)[0] == "eager"
    hide(monkeypatch, "eager")
    with pytest.raises(
        RuntimeError, match="no backend for parameters on cpu: cpu: hidden by a test"
    ):
        backends.select(None, CPU)


def test_named_but_unavailable_raises_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="CPU tensors only"):
        backends.select("cpu", torch.device("cuda"))
    hide(monkeypatch, "cpu")
    with pytest.raises(RuntimeError, match="'cpu' is unavailable.*hidden by a test.*backend=None"):
        AdamCScheduleFreePlus(make_params([(3,)]), backend="cpu")


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFPLUS_BACKEND", "eager")
    assert backends.select(None, CPU)[0] == "eager"
    assert backends.select("cpu", CPU)[0] == "cpu"  # the argument wins
    monkeypatch.setenv("SFPLUS_BACKEND", "abacus")
    with pytest.raises(ValueError, match="unknown backend 'abacus'"):
        backends.select(None, CPU)


def test_triton_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        backends.select("triton", CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install triton"):
        backends.select("triton", CPU)


def test_report_names_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(backends.report()) == ["cpu", "triton", "eager"] == backends.names()
    assert backends.report()["cpu"] == "available"
    hide(monkeypatch, "cpu")
    assert backends.report()["cpu"] == "hidden by a test"


def test_command_line_report() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    text = subprocess.run(
        [sys.executable, "-m", "sfplus_kernels"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    for word in ("sfplus_kernels", "torch", "triton", "backend cpu", "backend eager", "available"):
        assert word in text
    if not torch.cuda.is_available():
        assert "TRITON_INTERPRET" in text


def test_the_named_backend_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in backends.names():
        implementation = backends.select(name, CPU)[1]

        def update(
            plan: Any, state: Any, name: str = name, real: Any = implementation.update
        ) -> None:
            used.append(name)
            real(plan, state)

        monkeypatch.setattr(implementation, "update", update)
    for name in (*backends.names(), None):
        params = make_params([(3,)])
        run(AdamCScheduleFreePlus(params, backend=name), params, 1)
    assert used == [*backends.names(), "cpu"]
