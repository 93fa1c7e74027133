"""How the benchmarks know whether the machine was quiet."""

import os

import pytest

from bench.measure import quiet
from bench.record import table
from bench.record.rows import Row

QUIET = {
    "cores_of_others": 0.01,
    "cores_stolen": 0.0,
    "calibration_spread": 0.02,
    "calibration_drift": 0.01,
    "spread_of_rounds": 0.04,
    "drift_of_memory": None,
}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("cores_of_others", 1.0, "others kept 1.00 cores busy"),
        ("cores_stolen", 0.5, "the host took 0.50 cores away"),
        ("calibration_spread", 0.3, "rounds of the same arithmetic differ by 30 %"),
        ("calibration_drift", 0.2, "the same arithmetic, before and after, differs by 20 %"),
        ("drift_of_memory", 0.6, "what memory gives to the same loop differs by 60 %"),
        ("spread_of_rounds", 0.4, "p20 and p80 of a step are 40 % of its median apart"),
    ],
)
def test_what_is_wrong_with_a_machine_is_said(key: str, value: float, said: str) -> None:
    assert quiet.reasons(QUIET) == []
    found = quiet.reasons({**QUIET, key: value})
    assert found == [said]
    assert table.unrest({"machine": {"not_quiet": found}}) == f"The machine was not quiet: {said}."
    assert table.unrest({"machine": {"not_quiet": []}}) == table.unrest({}) == ""


def test_weather_sees_the_work_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "calibrate", lambda: {0: [1.0, 1.0], 1: [1.0, 1.0]})
    readings = [quiet.Usage(100.0, 5.0, 7.0, 50.0), quiet.Usage(119.0, 6.0, 16.0, 60.0)]
    monkeypatch.setattr(quiet, "usage", lambda: readings.pop(0))
    step = Row("step", "w", "a", ours=True)
    step.set_times([1.0, 1.0, 1.0])
    found = quiet.Weather().found([step])
    assert (found["cores_of_others"], found["cores_stolen"]) == (1.0, 0.1)
    assert (found["calibration_spread"], found["calibration_drift"]) == (0, 0)
    assert found["spread_of_rounds"] == 0
    assert len(found["not_quiet"]) == 2


def test_calibration_is_pinned_and_leaves_the_process_free() -> None:
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    found = quiet.calibrate(rounds=2)
    assert found.keys() == set(sorted(before)[:16])
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found.values())
    if hasattr(os, "sched_getaffinity"):
        assert os.sched_getaffinity(0) == before


def test_memory_that_gave_less_beside_another_workload() -> None:
    def loop(workload: str, seconds: float, name: str = "read 4 B") -> Row:
        row = Row("step", workload, name, traffic=100, ceiling=name)
        row.set_times([seconds])
        return row

    alone = [loop("a", 1.0), loop("a", 9.0, "change 4 B")]
    assert quiet.drift_of_memory(alone) is None
    assert quiet.drift_of_memory([*alone, loop("b", 1.5), loop("c", 1.2)]) == 0.5
    assert quiet.drift_of_memory([]) is None
