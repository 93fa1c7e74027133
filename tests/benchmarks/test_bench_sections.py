"""Each section of a run of the benchmarks, on hardly any memory. Nothing is timed for its time's sake."""

from typing import Any

import pytest
import torch

from bench.contestants.all import contestants
from bench.contestants.contestant import Contestant
from bench.contestants.faked import NoKernels, with_faked_kernels
from bench.contestants.family import FAMILY
from bench.contestants.options import with_options
from bench.measure import busy, plan, timing
from bench.measure.sections import Bench
from bench.record import rows
from bench.work import workloads as shapes
from sfplus_kernels.backends.native import _C

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    """A rehearsal with hardly any memory or turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.measure.race.last_level_cache", lambda: 2**20)
        small = Bench(CPU, contestants(CPU, "schedulefree+ cpu"), quick=True)
    small.memory = 1.9e5
    return small


def test_a_run_that_ends_early_has_a_part_of_each_kind(bench: Bench) -> None:
    titles = [title for title, _ in plan.parts(bench, shapes.suite("cpu", False), scaling=True)]
    assert titles[0] == "bandwidth"
    passes = [title for title in titles if title.startswith("passes")]
    assert titles.index("host time") < titles.index("10000 parameters")
    assert titles.index(passes[0]) < titles.index("beside a busy thread")
    curves = titles[titles.index("10000 parameters") : -len(passes) + 1]
    assert [title.split()[1] for title in curves[:4]] == ["parameters", "tensors"] * 2
    assert titles[-1] == passes[-1] != passes[0]
    assert len(set(titles)) == len(titles)


def test_a_section_of_every_kind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.race.SECONDS", dict.fromkeys(("step", "pass", "all"), 0.0))
    workload = shapes.Workload("tiny", "tiny", lambda: [(1000,), (33,)], "all", passes=True)
    found = bench.measure_steps(workload, first=True) + bench.measure_passes(workload)
    assert all(row.median and row.p20 and row.p80 and row.rounds == 3 for row in found)
    steps = {row.name: row for row in found if row.section == "step"}
    plus = steps["ScheduleFree+ cpu"]
    assert (plus.traffic, plus.state_bytes, plus.n_tensors) == (44 * 1033, 12 * 1033, 2)
    assert plus.percent_of_roofline is not None
    assert plus.ratio_to_baseline is not None
    passes = [
        row for row in found if row.section == "pass" and row.ours and "16bit" not in row.name
    ]
    assert {row.name.partition(": ")[2]: row.ceiling for row in passes} == {
        "reduce": "read 4+4 B",
        "finalize": "",
        "update": "read 4, change 4+4+4+4 B",
        "interpolate": "read 4, change 4 B",
    }
    assert plus.ceiling == "read 4+4 B + read 4, change 4+4+4+4 B"
    half = steps["ScheduleFree+ cpu 16bit"]
    assert (half.traffic, half.state_bytes) == (30 * 1033, 6 * 1033)
    assert half.ceiling == "read 4+2 B + read 4, change 2+2+2+4 B"


def test_options_are_timed_beside_the_same_steps_without(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.measure.race.SECONDS", {"options": 0.0})
    workload = shapes.Workload("tiny", "tiny", lambda: [(40, 32), (7,)], "all")
    found = {row.name: row for row in bench.measure_options(workload) if row.ours}
    name = "ScheduleFree+ cpu"
    assert list(found) == [name, f"{name}, row_norm", f"{name}, drift monitor"]
    assert all((row.section, row.status) == ("options", "ok") for row in found.values())
    assert all(row.median for row in found.values())


def test_steps_with_options_have_them() -> None:
    (plain,) = contestants(CPU, "schedulefree+ cpu")[:1]
    rows_, drift = with_options(plain)
    params = shapes.make_params([(40, 32), (7,)])
    optimizer, step = rows_.make(params)
    step()
    norms = optimizer.iterates(params[0]).z.norm(dim=1)  # type: ignore[attr-defined]
    torch.testing.assert_close(norms, torch.ones(40, dtype=norms.dtype))
    watched, step = drift.make(params)
    step()
    assert "group_rotation" in watched.metrics()  # type: ignore[attr-defined]


def test_beside_a_busy_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.race.SECONDS", {"busy": 0.0})
    started: list[Any] = []
    popen = busy.subprocess.Popen
    monkeypatch.setattr(
        busy.subprocess, "Popen", lambda *a: started.append(popen(*a)) or started[0]
    )
    workload = shapes.Workload("tiny", "tiny", lambda: [(1000,)], "all")
    found = {row.name: row for row in bench.measure_busy(workload)}
    assert found.keys() == {"ScheduleFree+ cpu", "ScheduleFree+ cpu 16bit", rows.BASELINE}
    assert all(row.section == "busy" and row.median for row in found.values())
    (process,) = started
    assert process.poll() is not None  # it has ended


def test_steps_whose_gradients_move_are_timed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.measure.race.SECONDS", {"host": 0.0})
    monkeypatch.setattr(bench, "memory", 1e8)
    found = {row.name: row.status for row in bench.measure_host()}
    assert found["ScheduleFree+ cpu, gradients move"] == "ok"
    assert set(found.values()) == {"ok"}


def test_the_hosts_part_is_timed_step_after_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.measure.race.SECONDS", {"pairs": 0.0})
    found = {row.name: row for row in bench.measure_host_in_pairs()}
    names = ["ScheduleFree+ cpu", "ScheduleFree+ cpu 16bit"]
    if not _C.CUDA_MISSING:
        names.append("ScheduleFree+ cuda, kernels faked")
    moving = [f"{name}, gradients move" for name in names]
    assert list(found) == [rows.BASELINE, *names, *moving]
    assert all((row.section, row.status) == ("pairs", "ok") for row in found.values())
    assert found[rows.BASELINE].ratio_to_baseline == 1
    assert all(row.median and row.ratio_to_baseline for row in found.values())
    assert found[rows.BASELINE].rounds == (len(found) - 1) * found[names[0]].rounds


@pytest.mark.skipif(bool(_C.CUDA_MISSING), reason=f"no CUDA kernels: {_C.CUDA_MISSING}")
def test_faked_kernels_are_launched_and_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is a launch of reduce and one of update, as on a GPU."""
    plus = next(c for c in contestants(CPU, "schedulefree+ cpu") if c.name == "ScheduleFree+ cpu")
    launched: list[str] = []
    monkeypatch.setattr(
        NoKernels, "__getattr__", lambda self, name: lambda *a: launched.append(name)
    )
    params = shapes.make_params([(4,), (3,)])
    before = [p.detach().clone() for p in params]
    _, step = with_faked_kernels(plus).make(params)
    step()
    assert launched == ["cuda_reduce", "cuda_update"]
    assert all(map(torch.equal, before, params))


class Device(timing.CpuTimer):
    """As that of a GPU, which works on after the step has returned."""

    asynchronous = True

    def host_time(self, step: timing.Step) -> float:
        step()
        return 0.25


def test_host_time_and_graphs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU: its own time, the host's, and that of the same step as a graph."""
    monkeypatch.setattr(
        "bench.measure.race.SECONDS", dict.fromkeys(("step", "launch", "graph"), 0.0)
    )
    monkeypatch.setattr(bench, "timer", Device(torch.ones(64), cache=64))
    monkeypatch.setattr("bench.measure.race.captured", lambda step: step)
    workload = shapes.Workload("tiny", "tiny", lambda: [(1000,), (33,)])
    found = {row.name: row for row in bench.measure_steps(workload)}
    plus, graph = found["ScheduleFree+ cpu"], found["ScheduleFree+ cpu graph"]
    assert (plus.host, graph.host) == (0.25, None)
    assert (graph.status, graph.rounds, graph.traffic) == ("ok", 3, plus.traffic)
    assert graph.median != plus.median
    assert graph.ratio_to_baseline == pytest.approx(graph.median / found[rows.BASELINE].median)

    def refused(step: timing.Step) -> timing.Step:
        raise RuntimeError("cannot be captured")

    monkeypatch.setattr("bench.measure.race.captured", refused)
    found = {row.name: row for row in bench.measure_steps(workload)}
    graph = found["ScheduleFree+ cpu graph"]
    assert (graph.status, graph.reason) == ("failed", "RuntimeError: cannot be captured")
    assert graph.median is graph.ratio_to_baseline is None


def test_the_other_classes_have_a_workload_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.race.SECONDS", {"step": 0.0})
    monkeypatch.setattr("bench.measure.race.last_level_cache", lambda: 2**20)
    workload = shapes.Workload("tiny", "tiny", lambda: [(1000,), (33,)], "others")
    bench = Bench(CPU, contestants(CPU), quick=True)
    measured = bench.measure_steps(workload)
    others = [f for f in FAMILY if not f.main]
    expected = {f"{f.label} cpu" for f in others}
    expected |= {f"{f.label} upstream" for f in others if f.upstream}
    timed_ones = {row.name: row.status for row in measured if row.name != row.ceiling}
    assert timed_ones == dict.fromkeys({rows.BASELINE, *expected}, "ok")
    assert len(measured) > len(timed_ones)  # loops beside them


def test_what_does_not_fit_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.measure.race.SECONDS", {"step": 0.0})
    workload = shapes.Workload(
        "large", "large", lambda: [(10_000,)]
    )  # 12 and 8 bytes of state each
    two = [c for c in bench.contestants if not c.name.endswith("16bit")]
    monkeypatch.setattr(bench, "contestants", two)
    found = {row.name: row for row in bench.measure_steps(workload)}
    assert found["ScheduleFree+ cpu"].status == "left out"
    assert found["ScheduleFree+ cpu"].reason == "needs 0.0 GB beside the others"
    assert found[rows.BASELINE].status == "ok"


def test_a_step_that_takes_the_gradients_away_is_not_timed(bench: Bench) -> None:
    def make(params: list[Any]) -> Any:
        optimizer = torch.optim.SGD(params)
        return optimizer, lambda: (optimizer.step(), optimizer.zero_grad())

    workload = shapes.Workload("tiny", "tiny", lambda: [(9,)])
    taker = Contestant("taker", make, None)
    (row,) = bench._race("step", workload, workload.shapes(), [taker], "step")
    assert (row.status, row.median) == ("failed", None)
    assert "takes the gradients away" in row.reason


def test_tensors_for_which_nobody_has_room_are_not_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_params(*args: Any) -> None:
        raise AssertionError("out of memory")

    monkeypatch.setattr("bench.measure.race.make_params", make_params)
    found = bench.measure_scaling("size", "huge", [(10**9,)])
    assert {row.status for row in found} == {"left out"}
