"""Which backend is chosen, and what is said when one cannot be had."""

import lzma
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import make_params, run

from sfplus_kernels import AdamCScheduleFreePlus, backends
from sfplus_kernels.backends import registry
from sfplus_kernels.core.backend_choice import tell_choice

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


class Extension:
    """A compiled extension with CUDA kernels, on a machine whose driver serves CUDA up to ``driver``."""

    CUDA_COMPILER = "NVRTC 12.9"
    CUDA_IMAGES: dict[str, Any] = {"sm_90": (lzma.compress(b"code"), 0, 4)}  # noqa: RUF012

    def __init__(
        self, missing: str = "", driver: int = 0, capability: tuple[int, int] = (9, 0)
    ) -> None:
        self.CUDA_MISSING, self._driver, self._capability = missing, driver, capability
        self.loaded: list[int] = []

    def cuda_driver_version(self) -> int:
        return self._driver

    def cuda_capability(self, device: int) -> tuple[int, int]:
        return self._capability

    def cuda_load(self, device: int, image: bytes) -> None:
        assert image == b"code"
        self.loaded.append(device)


def install(monkeypatch: pytest.MonkeyPatch, extension: Any) -> None:
    native = SimpleNamespace(_C=extension)
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: native)


@pytest.mark.parametrize(
    ("extension", "device_type", "said"),
    [
        (
            Extension("SFPLUS_CUDA=off"),
            "cuda",
            r"^not built \(SFPLUS_CUDA=off\).*SFPLUS_CUDA=require",
        ),
        (Extension(), "cuda", "^no NVIDIA driver$"),
        (Extension(driver=11080), "cuda", r"^driver too old: it serves CUDA 11\.8.*need 12\.0"),
        (Extension(driver=12000), "cpu", "^it works on cuda tensors, not on cpu$"),
        (Extension(driver=12000), "cuda", "^torch finds no CUDA device$"),
    ],
)
def test_cuda_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, extension: Extension, device_type: str, said: str
) -> None:
    install(monkeypatch, extension)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = registry._RECORDS["cuda"].unavailable_reason(torch.device(device_type))
    assert reason is not None
    assert re.search(said, reason)


def test_cuda_loads_its_kernels_for_the_device_that_is_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extension = Extension(driver=12000)
    install(monkeypatch, extension)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    reason_on = registry._RECORDS["cuda"].unavailable_reason
    assert reason_on(torch.device("cuda")) is None
    assert reason_on(torch.device("cuda:1")) is None  # not the current one: that takes memory there
    assert extension.loaded == [2, 1]
    install(monkeypatch, Extension(driver=12000, capability=(6, 1)))
    assert "compute capability 6.1" in str(reason_on(torch.device("cuda")))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "for NVIDIA GPUs" in str(reason_on(torch.device("cuda")))
    assert registry._RECORDS["cuda"].automatic_on == {"cuda"}
    assert backends.names().index("cuda") < backends.names().index("triton")


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("3.3.1", "Triton 3.3.1 is too old: 3.4 or later is needed"),
        ("2.1.0", "Triton 2.1.0 is too old"),
        ("3.4.0", None),
        ("3.10.0+git0123", None),
        ("4.0.0rc1", None),
        (None, None),  # a build of it under another name
    ],
)
def test_triton_says_if_it_is_too_old(version: str | None, problem: str | None) -> None:
    said = registry.triton_problem(version)
    assert said is None if problem is None else problem in str(said)


@pytest.mark.parametrize(("triton", "expected"), [("3.9.0", "triton"), ("3.2.0", "eager")])
def test_a_gpu_whose_driver_is_too_old_gets_the_next_backend(
    monkeypatch: pytest.MonkeyPatch, triton: str, expected: str
) -> None:
    import sfplus_kernels._C as native

    monkeypatch.setattr(native, "CUDA_MISSING", "")
    monkeypatch.setattr(native, "CUDA_COMPILER", "NVRTC 12.9", raising=False)
    monkeypatch.setattr(native, "cuda_driver_version", lambda: 11080, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(registry.importlib.metadata, "version", lambda name: triton)
    assert backends.select(None, torch.device("cuda:0"))[0] == expected
    with pytest.raises(RuntimeError, match="'cuda' is unavailable.*serves CUDA 11.8.*need 12.0"):
        backends.select("cuda", torch.device("cuda:0"))


def test_the_extension_itself_knows_its_driver() -> None:
    from sfplus_kernels.backends.native import _C

    if _C.CUDA_MISSING:
        assert not hasattr(_C, "cuda_driver_version")
        assert "not built" in backends.report()["cuda"]
    else:
        driver = _C.cuda_driver_version()
        assert driver >= 0
        assert (backends.report()["cuda"] == "no NVIDIA driver") == (driver == 0)
        if driver == 0:
            with pytest.raises(RuntimeError, match="^no NVIDIA driver$"):
                _C.cuda_capability(0)


@pytest.mark.parametrize(
    ("found", "headers", "said"),
    [
        ("gcc", True, None),
        ("", True, "needs a C compiler, and gcc or clang is not to be found"),
        ("gcc", False, "needs Python's headers"),
    ],
)
def test_triton_is_not_chosen_where_it_cannot_build_its_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str, headers: bool, said: str | None
) -> None:
    """It would raise at the first step, when the state has been made."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(registry.shutil, "which", lambda name: name if name == found else None)
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda name: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(registry.importlib.metadata, "version", lambda name: "3.9.0")
    hide(monkeypatch, "cuda")
    reason = registry._RECORDS["triton"].unavailable_reason(torch.device("cuda:0"))
    assert reason is None if said is None else said in str(reason)
    chosen = backends.select(None, torch.device("cuda:0"))[0]
    assert chosen == ("triton" if said is None else "eager")
    monkeypatch.setenv("CC", "icx")
    assert "CC=icx" in str(registry.compiler_problem())


def test_the_next_best_backend_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Triton, where the CUDA kernels cannot be had: no warning, since it is about as quick."""
    engine: Any = SimpleNamespace(backend_name="triton", passed_over="cuda: no NVIDIA driver")
    with caplog.at_level("INFO", logger="sfplus_kernels"):
        tell_choice(engine)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage().endswith("backend 'triton': cuda: no NVIDIA driver")
    caplog.clear()
    tell_choice(SimpleNamespace(backend_name="cuda", passed_over=""))  # type: ignore[arg-type]
    assert not caplog.records


def test_report_names_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(backends.report()) == ["cpu", "cuda", "triton", "eager"] == backends.names()
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
    assert re.search(r"^backend cuda +\S", text, re.MULTILINE)
    if not torch.cuda.is_available():
        assert "TRITON_INTERPRET" in text


def test_the_named_backend_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    # on a machine with a GPU Triton's kernels are for that
    serving = [n for n in backends.names() if registry._RECORDS[n].unavailable_reason(CPU) is None]
    for name in serving:
        implementation = backends.select(name, CPU)[1]

        for operation in ("update", "step"):  # a step is one or the other
            real = getattr(implementation, operation)

            def noted(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> None:
                used.append(name)
                real(*args, **kwargs)

            monkeypatch.setattr(implementation, operation, noted)
    for name in (*serving, None):
        params = make_params([(3,)])
        run(AdamCScheduleFreePlus(params, backend=name), params, 1)
    assert used == [*serving, "cpu"]
