"""The benchmark suite's own code: arithmetic, contestants, provenance, result files."""

import json
from pathlib import Path

import pytest
import torch
from timed_rows import timed

from bench.contestants.all import contestants
from bench.contestants.family import FAMILY
from bench.measure import plan
from bench.measure.ceilings import Ceiling
from bench.measure.held import ceiling_rows, hold_against
from bench.measure.profiling import profile_step
from bench.record import provenance, rows, table
from bench.record.rows import Row, relate
from bench.work import workloads as shapes

CPU = torch.device("cpu")


# -- arithmetic ----------------------------------------------------------------------------------------------


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


# -- what is measured ----------------------------------------------------------------------------------------


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


# -- provenance and files ------------------------------------------------------------------------------------


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
