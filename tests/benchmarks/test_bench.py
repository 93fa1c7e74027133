"""The benchmark suite's own code: arithmetic, provenance, plans, result files, report. Nothing is timed for
its time's sake."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.contestants.all import contestants
from bench.contestants.contestant import Contestant
from bench.contestants.faked import NoKernels, with_faked_kernels
from bench.contestants.family import FAMILY
from bench.contestants.moving import MovedStep
from bench.contestants.options import with_options
from bench.measure import busy, plan, timing
from bench.measure.ceilings import Ceiling
from bench.measure.held import ceiling_rows, hold_against
from bench.measure.profiling import profile_step
from bench.measure.sections import Bench
from bench.record import provenance, rows, table
from bench.record.rows import Row, relate
from bench.work import workloads as shapes
from sfplus_kernels.backends.native import _C

CPU = torch.device("cpu")


def timed(name: str, traffic: int, seconds: list[float], **values: Any) -> Row:
    row = Row("step", "w", name, traffic=traffic, read=traffic // 2, n_params=100, **values)
    row.set_times(seconds)
    return row


# -- arithmetic -----------------------------------------------------------------------------------------


def test_what_was_not_timed_has_no_figures() -> None:
    absent = Row("step", "w", "a", "absent", "not installed")
    relate([absent])
    assert absent.bandwidth is absent.percent_of_roofline is absent.ratio_to_baseline is None
    assert table.cells(absent)[:3] == ("a", "absent", "not installed")


def test_cells_of_a_row() -> None:
    found = {"in-place": Ceiling(lambda: None, 800, "x <- -x", 400)}
    (ceiling,) = ceiling_rows("step", "w", found, {"in-place": [0.002] * 3}, 100)
    step = timed("a", 4400, [0.0123456] * 3, state_bytes=1200)
    hold_against(step, [0.0123456] * 3, (), found, {"in-place": [0.002] * 3}, has_loops=False)
    assert table.cells(step) == (
        *("a", "12.3", "", "89 %", "12.3 - 12.3", "44", "49", "0.0"),
        "12.0",
    )
    # beside steps its time says nothing: it is that of an array of another size
    assert table.cells(ceiling)[:6] == ("in-place bandwidth", "", "", "100 %", "", "")
    assert [table.milliseconds(s) for s in (None, 1e-6, 0.00123, 0.0123, 0.123)] == [
        "",
        "0.001",
        "1.23",
        "12.3",
        "123",
    ]


def test_as_many_columns_as_fit() -> None:
    row = timed("a", 4400, [0.0123456] * 3, state_bytes=1200)
    assert table.fitting([row], 200) == [table.COLUMNS, table.cells(row)]
    assert table.fitting([row], 25) == [("", "ms, median"), ("a", "12.3")]
    heading, line = table.fitting([row], 60)
    assert 2 < len(heading) == len(line) < len(table.COLUMNS)
    assert sum(len(name) + 3 for name in heading) < 60


def test_temporary_memory() -> None:
    a = torch.ones(1000)
    found = profile_step(lambda: (a + 1) * 2, CPU)
    assert 8000 <= found.temporary_bytes < 8100
    assert found.launches is None
    assert profile_step(lambda: a.add_(1), CPU).temporary_bytes < 100


# -- what is measured -------------------------------------------------------------------------------------


def test_shapes_of_public_models() -> None:
    for model, n_params, n_tensors in (
        (shapes.gpt2(), 124_439_808, 148),
        (shapes.llama_1b(), 1_235_814_400, 146),
        (shapes.llama(32, 4096, 14336, 1024, 128256, tied=False), 8_030_261_248, 291),
    ):
        assert (shapes.n_params(model), len(model)) == (n_params, n_tensors)
    assert shapes.n_params(shapes.llama_8b_shard()) * 8 == 8_030_261_248
    assert all(size % 2 for (size,) in shapes.odd(50, 100))


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_suite_begins_with_the_whole_field(device_type: str, quick: bool) -> None:
    suite = shapes.suite(device_type, quick)
    assert suite[0].tier == "all"
    assert len({w.name for w in suite}) == len(suite)


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


def test_points_of_the_curves() -> None:
    assert plan.sizes("quick") == [10_000, 30_000, 100_000, 300_000, 1_000_000]
    assert plan.sizes("cuda")[-2:] == [3 * 10**9, 4 * 10**9]
    assert (plan.COUNTS[0], plan.COUNTS[-1]) == (1, 20_000)


def test_every_class_of_the_package_is_timed() -> None:
    import sfplus_kernels

    classes = {
        name
        for name in sfplus_kernels.__all__
        if isinstance(cls := getattr(sfplus_kernels, name), type)
        and issubclass(cls, torch.optim.Optimizer)
    }
    aliases = {"ScheduleFreePlus"}
    assert {family.class_name for family in FAMILY} == classes - aliases


def test_names_are_chosen_by_their_parts() -> None:
    found = contestants(CPU, "schedulefree+ cpu, SGD fused")
    ours = [f"ScheduleFree+ cpu{kept}" for kept in ("", " 16bit", " 8bit")]
    assert [c.name for c in found] == [*ours, "torch SGD fused", rows.BASELINE]
    with pytest.raises(
        ValueError, match="no optimizer has 'lion' in its name; expected a part of:"
    ):
        contestants(CPU, "lion")
    with pytest.raises(ValueError, match="unknown workload 'gpt5': expected some of gpt2-blocks"):
        plan.chosen_workloads("cpu", True, "gpt5")


def test_absent_ones_are_listed_with_the_reason() -> None:
    absent = {c.name: c.absent for c in contestants(CPU) if c.absent}
    assert "interpreter" in absent["ScheduleFree+ triton"]
    assert absent["apex FusedAdam"]


@pytest.fixture(scope="module")
def bench() -> Bench:
    """A rehearsal with hardly any memory or turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.measure.race.last_level_cache", lambda: 2**20)
        small = Bench(CPU, contestants(CPU, "schedulefree+ cpu"), quick=True)
    small.memory = 1.9e5
    return small


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


# -- provenance and files ---------------------------------------------------------------------------------


def test_provenance_of_this_machine() -> None:
    found = provenance.collect(CPU, ("numpy",))
    expected = (
        "device_type device driver clocks threads isa python torch sfplus_kernels commit date"
    )
    assert set(expected.split()) <= found.keys()
    assert found["device"]
    assert found["torch"] == torch.__version__
    assert "schedulefree 1.4.1" in found["packages"]


def test_every_row_of_a_file_carries_its_provenance(tmp_path: Path) -> None:
    known = provenance.collect(CPU)
    made = [timed("in-place", 800, [2.0]), Row("step", "w", "b", "absent", "x")]
    for row in made:
        row.provenance = known
    path = rows.write(tmp_path, made, {"quick": True})
    assert rows.read(path).rows == made
    for saved in json.loads(path.read_text())["rows"]:
        assert known.items() <= saved.items()
    lines = path.with_suffix(".csv").read_text().splitlines()
    assert len(lines) == 1 + len(made)
    assert set(known) <= set(lines[0].split(","))


def test_a_file_of_before_a_column_is_read(tmp_path: Path) -> None:
    row = timed("in-place", 800, [2.0])
    path = rows.write(tmp_path, [row], {"quick": True})
    content = json.loads(path.read_text())
    del content["rows"][0]["host"]
    path.write_text(json.dumps(content))
    assert rows.read(path).rows == [row]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a result file of format 1 with rows; expected"):
        rows.read(path)
