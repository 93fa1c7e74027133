"""Turns: who is timed when, and what goes through the caches in front of it."""

import math
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from bench.contestants.moving import MovedStep
from bench.measure import timing
from bench.measure.race import Races
from bench.work import workloads as shapes


def test_what_is_close_is_timed_one_after_the_other() -> None:
    calls: list[str] = []
    steps = {name: partial(calls.append, name) for name in "abcdef"}
    timer = timing.CpuTimer(torch.ones(1024), 1024)
    timing.take_turns(timer, steps, 60, lambda: None, close=["ace"], most=6, least=6)
    turns = ["".join(calls[i : i + 6]) for i in range(6, len(calls), 6)]
    orders = [{turn[i : i + 3] for i in range(4)} for turn in turns]
    assert all(any(sorted(three) == ["a", "c", "e"] for three in order) for order in orders)
    assert len(set(turns)) > 1


def test_slow_steps_take_part_in_a_few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SLOW", 0.005)

    def slow() -> None:
        time.sleep(0.006)

    steps: dict[str, Any] = {"quick": lambda: None, "slow": slow, "held": slow}
    timer = timing.CpuTimer(torch.ones(1024), 1024)
    rounds = timing.take_turns(
        timer, steps, 60, lambda: None, close=[["held", "quick"]], most=12, least=12
    )
    taken = {name: [not math.isnan(s) for s in seconds] for name, seconds in rounds.items()}
    assert all(taken["quick"])
    assert all(taken["held"])
    assert sum(taken["slow"]) == timing.FEW
    assert any(taken["slow"][:4])
    assert any(taken["slow"][4:8])
    assert any(taken["slow"][8:])
    assert {len(seconds) for seconds in rounds.values()} == {12}


def test_turns_are_fair() -> None:
    calls: list[str] = []
    timer = timing.CpuTimer(torch.ones(64), cache=64)
    steps = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    ticks: list[int] = []
    seconds = timing.take_turns(timer, steps, 60, lambda: ticks.append(1), most=5, least=5)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 5, "b": 5, "c": 5}
    turns = [calls[i : i + 3] for i in range(3, len(calls), 3)]  # the first three warm up
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns[:5])
    assert len({tuple(turn) for turn in turns}) > 1
    assert len(ticks) == 15


def test_a_timer_flushes_memory_of_its_own() -> None:
    arena = torch.ones(96)
    timer = timing.CpuTimer(arena, cache=64)
    timer.flush()
    assert arena.tolist() == [1.0] * 80 + [-1.0] * 16  # as much as the cache, at the arena's end


@pytest.mark.parametrize(("seconds", "late"), [(None, False), (3600.0, False), (30.0, True)])
def test_a_run_that_is_late_takes_fewest_turns(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, late: bool
) -> None:
    """Three parts want 36 seconds; the last one alone has enough of 30."""
    whole_run = pytest.importorskip("bench.__main__")
    bench = SimpleNamespace()
    seen: list[bool] = []

    def part() -> list:
        seen.append(bench.late)
        return []

    monkeypatch.setattr(whole_run, "parts", lambda *_, **__: [(str(k), part) for k in range(3)])
    until = None if seconds is None else time.monotonic() + seconds
    console = Console(quiet=True)
    whole_run.run(bench, [], scaling=True, console=console, save=lambda *_: None, until=until)
    assert seen == [late, False, False]


def test_who_is_late_takes_three_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.race.last_level_cache", lambda: 2**20)
    monkeypatch.setattr("bench.measure.race.SECONDS", {"step": 600.0})
    races = Races(torch.device("cpu"), [], quick=True)
    races.quick = False
    assert len(races.turns({"a": lambda: None}, "step", most=9)["a"]) >= 7
    races.late = True
    assert len(races.turns({"a": lambda: None}, "step")["a"]) == 3


def test_gradients_move_before_the_clock_starts() -> None:
    (param,) = shapes.make_params([(4,)])
    seen: list[int] = []

    def step() -> None:
        assert param.grad is not None
        seen.append(param.grad.data_ptr())

    moved = MovedStep(step, [param])
    timer = timing.CpuTimer(torch.ones(64), cache=64)
    for _ in range(4):
        timer.host_time(moved)
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


def test_the_host_has_a_lead_over_the_device_in_slow_steps_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the figure of a step that keeps the host busy for long would be the host's."""
    slept: list[int] = []
    event = SimpleNamespace(
        record=lambda: None, synchronize=lambda: None, elapsed_time=lambda other: 1.0
    )
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    timer = timing.CudaTimer(torch.ones(64), cache=64)

    def quick() -> None:
        pass

    def slow() -> None:
        time.sleep(0.02)

    for step in (quick, slow, slow):
        assert timer.time(step) == 1e-3
    assert slept[0] == 10_000_000
    assert slept[1] == slept[2] >= 1.5 * 0.02 * timer.CYCLES
