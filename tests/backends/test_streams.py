"""What CUDA streams and captures ask of the host's side, with torch's own functions in their place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfplus_kernels.backends.cuda import CudaBackend
from sfplus_kernels.backends.table import build_table
from sfplus_kernels.contract import streams
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.streams import StreamUse
from sfplus_kernels.engine import delayed_figures
from sfplus_kernels.engine.delayed_figures import DelayedFigures

GPU = torch.device("cuda", 0)


class Recorded:
    """A tensor that says which streams its memory waits for."""

    def __init__(self) -> None:
        self.streams: list[int] = []

    def record_stream(self, stream: int) -> None:
        self.streams.append(stream)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The current stream, to be chosen."""
    chosen = SimpleNamespace(stream=11)
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: chosen.stream, raising=False
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: chosen.stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return chosen


def test_memory_waits_for_every_stream_that_used_it(current: SimpleNamespace) -> None:
    """Made on the side stream of a warm-up, used on the main one, dropped: not given out before the end."""
    tensors: list[Any] = [Recorded(), Recorded()]
    use = StreamUse(GPU, tensors)
    assert use.note() == 11
    assert [t.streams for t in tensors] == [[], []]  # its own needs nothing
    current.stream = 22
    assert [use.note(), use.note()] == [22, 22]
    current.stream = 33
    use.note()
    current.stream = 22
    use.note()
    assert [t.streams for t in tensors] == [[22, 33], [22, 33]]  # once for each
    assert streams.current_stream(torch.device("cpu")) == 0


def test_a_launch_notes_the_stream_that_it_is_on(current: SimpleNamespace) -> None:
    """The tables of a plan, all five of them."""
    param = torch.zeros(3)
    entry = Entry(param, None, None, torch.zeros(3), None, 0, 0, torch.float32)
    table = build_table([entry], torch.device("cpu"), 512)
    held = table.use._tensors
    expected = (table.rows, table.own_gradients, table.chunks, table.partials, table.tickets)
    assert [t.data_ptr() for t in held] == [t.data_ptr() for t in expected]
    tensors: list[Any] = [Recorded()]
    table.use = StreamUse(GPU, tensors)
    current.stream = 44
    launched: list[tuple[int, int]] = []
    native = SimpleNamespace(
        Run=lambda *a, **k: None,
        Table=lambda **k: None,
        Finish=lambda **k: None,
        cuda_finalize=lambda finish, device, stream: launched.append((device, stream)),
    )
    backend = CudaBackend(native)
    plan = SimpleNamespace(table=table, launches=[], native_run=None)
    run: Any = SimpleNamespace(addresses=dict)
    backend.finalize(plan, run, None)  # type: ignore[arg-type]
    assert launched == [(0, 44)]
    assert tensors[0].streams == [44]


class Event:
    """One that must not be asked: CUDA takes the question for an error in a capture, and ends that."""

    def query(self) -> bool:
        raise AssertionError("asked for an event inside of a capture")


def test_nothing_is_asked_of_the_device_inside_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = SimpleNamespace(
        device=torch.device("cpu"), figures=lambda: torch.zeros(3, dtype=torch.float64)
    )
    delayed = DelayedFigures(engine)
    delayed.send()
    assert delayed.newest() == [0.0, 0.0, 0.0]
    delayed.send()
    under_way = delayed._under_way
    under_way[-1] = (Event(), under_way[-1][1])  # type: ignore[assignment]
    monkeypatch.setattr(delayed_figures, "capturing", lambda device: True)
    delayed.send()
    assert delayed.newest() == [0.0, 0.0, 0.0]
    assert len(under_way) == 1
