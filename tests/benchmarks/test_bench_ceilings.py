"""What the memory gives, and steps held against it."""

import pytest
import torch
from timed_rows import timed

from bench.measure.ceilings import (
    IN_ONE_PIECE,
    Ceiling,
    loops,
    loops_beside,
    loops_in_place,
    name_of,
)
from bench.measure.held import OTHER, beside, best, ceiling_rows, hold_against, interval_of_median
from bench.measure.race import Races
from bench.record import rows, table
from bench.record.provenance import ROOT
from bench.record.rows import relate
from bench.work import traffic
from bench.work.arrays import Arrays
from bench.work.memory import of_step
from bench.work.workloads import make_params
from sfplus_kernels import AdamCScheduleFreePlus


def bits(tensor: torch.Tensor) -> list[int]:
    words: list[int] = tensor.detach().flatten().view(torch.uint8).tolist()
    return words


REDUCE = Arrays(read=(4, 4))
UPDATE = Arrays(changed=(4, 4, 4, 4), read=(4,))


BOTH = (REDUCE, UPDATE)


def loop_of(*passes: Arrays) -> Ceiling:
    """Over 100 elements."""
    moved = 100 * sum(arrays.bytes_per_element for arrays in passes)
    read = 100 * sum(arrays.bytes_read for arrays in passes)
    return Ceiling(lambda: None, moved, "", read, other=lambda: None)


LOOPS = {name_of(passes): loop_of(*passes) for passes in ((REDUCE,), (UPDATE,), BOTH)}


def rounds_of(
    reduce: list[float], update: list[float], both: list[float]
) -> dict[str, list[float]]:
    """The loops from the other end take 1 second longer."""
    rounds = dict(zip(LOOPS, (reduce, update, both), strict=True))
    slower = {OTHER.format(name=n): [t + 1 for t in times] for n, times in rounds.items()}
    return {**rounds, **slower}


def test_a_step_is_held_against_the_loops_of_its_passes() -> None:
    """Back to back: what these take each on its own does not matter."""
    rounds = rounds_of([9.0] * 3, [9.0] * 3, [11.0] * 3)
    step = timed("a", 4400, [20.0, 22.0, 30.0])
    baseline = timed(rows.BASELINE, 2800, [11.0])
    hold_against(step, [20.0, 22.0, 30.0], BOTH, LOOPS, rounds, has_loops=True)
    loops = ceiling_rows("step", "w", LOOPS, rounds, 100)
    relate([*loops, step, baseline])
    assert step.percent_of_roofline == pytest.approx(50)  # 11 seconds at least
    assert step.ceiling == "read 4+4 B + read 4, change 4+4+4+4 B"
    assert step.bandwidth == 200
    assert step.bytes_per_param == 44
    assert step.bytes_per_param_by_time == pytest.approx(88)
    assert step.ratio_to_baseline == pytest.approx(2)
    assert [row.name for row in loops] == [REDUCE.name, UPDATE.name, step.ceiling]
    assert loops[0].percent_of_roofline == pytest.approx(100)
    assert (step.p20, step.median, step.p80) == pytest.approx((20.8, 22, 26.8))


def test_a_step_is_held_against_the_loops_of_the_same_turn() -> None:
    """Where memory is slower from turn to turn, and the step with it, it is at half of what there is."""
    seconds = [20.0, 40.0, 80.0]
    step = timed("a", 4400, seconds)
    rounds = rounds_of([1.0] * 3, [1.0] * 3, [10.0, 20.0, 40.0])
    hold_against(step, seconds, BOTH, LOOPS, rounds, has_loops=True)
    assert step.percent_of_roofline == pytest.approx(50)


def test_the_quicker_one_of_two_loops_is_the_ceiling() -> None:
    rounds = rounds_of([3.0] * 3, [8.0] * 3, [11.0] * 3)
    rounds[OTHER.format(name=REDUCE.name)] = [2.0, 4.0, 2.0]
    assert best(LOOPS, rounds)[REDUCE.name] == [2, 3, 2]
    step = timed("a", 800, [4.0])
    hold_against(step, [4.0] * 3, (REDUCE,), LOOPS, rounds, has_loops=True)
    assert step.percent_of_roofline == pytest.approx(50)


def test_a_step_of_many_operations_is_held_against_what_binds_it() -> None:
    """Loops here move 450 bytes a second, and read 400 of 800 in 2."""
    rounds = rounds_of([2.0], [8.0], [11.0])
    moving, reading = timed("a", 4500, [20.0]), timed("b", 4500, [20.0])
    reading.read = 4400
    for row in (moving, reading):
        hold_against(row, [20.0], (), LOOPS, rounds, has_loops=True)
    assert (moving.ceiling, moving.percent_of_roofline) == ("all bytes moved", pytest.approx(50))
    assert (reading.ceiling, reading.percent_of_roofline) == ("bytes read", pytest.approx(55))


def test_without_loops_there_is_one_ceiling() -> None:
    found = {"copy": Ceiling(lambda: None, 800, "a <- b", 400)}
    step = timed("a", 4400, [22.0])
    hold_against(step, [22.0], BOTH, found, {"copy": [2.0]}, has_loops=False)
    assert (step.ceiling, step.percent_of_roofline) == ("copy", pytest.approx(50))


@pytest.mark.parametrize("state_format", ["float32", "16bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loops_go_over_the_tensors_of_the_passes(state_format: str, dtype: torch.dtype) -> None:
    """Where the optimizer keeps them, and what is in them stays; all bytes of the passes have their loop."""
    params = make_params([(70, 64), (33,), (128,)], "cpu", dtype, dtype)
    optimizer = AdamCScheduleFreePlus(params, backend="cpu", state_format=state_format)

    optimizer.train()

    def step() -> None:
        optimizer.step(loss=1.0)

    step()
    memory = of_step(optimizer, step, params)
    recorder = traffic.record_step(optimizer, step)
    ((passes, own),) = memory.items()
    assert list(passes) == recorder.arrays
    found = loops_in_place(memory)
    (ceiling,) = found.values()
    assert ceiling.traffic * (70 * 64 + 33 + 128) == recorder.bytes * (70 * 64 + 128)
    assert ceiling.read * recorder.bytes == ceiling.traffic * recorder.bytes_read
    states = [
        t for p in params for t in optimizer.state[p].values() if torch.is_tensor(t) and t.dim()
    ]
    tensors = [*params, *(p.grad for p in params if p.grad is not None), *states]
    before = [bits(t) for t in tensors]
    assert {t.data_ptr() for side in own[-1].tensors for t in side} == {
        t.data_ptr() for t in tensors
    }
    assert ceiling.other is not None
    ceiling.run()
    ceiling.other()
    assert [bits(t) for t in tensors] == before


@pytest.mark.parametrize("arrays", [REDUCE, Arrays((2, 4), (2,)), Arrays(changed=(4, 1, 1))])
def test_a_loop_touches_the_arrays_that_it_is_named_after(arrays: Arrays) -> None:
    arena = torch.zeros(100_000)
    (ceiling,) = loops(arena, [(arrays,)], numel=1).values()
    elements = ceiling.traffic // arrays.bytes_per_element
    room = 4 * len(arena) // sum((*arrays.changed, *arrays.read))
    assert room - 64 < elements <= room  # as many as there is room for
    assert ceiling.read == elements * arrays.bytes_read
    ceiling.run()
    changed = int((arena.view(torch.int8) == -1).sum())
    assert changed == elements * sum(arrays.changed)


def test_a_step_of_two_passes_has_a_loop_of_both() -> None:
    """Both go over the same memory, and each number of its arrays is flipped by the second one alone."""
    arena = torch.zeros(100_000)
    (ceiling,) = loops(arena, [BOTH], numel=1).values()
    n = len(arena) // 5 // 64 * 64
    assert (ceiling.traffic, ceiling.read) == (44 * n, 28 * n)
    ceiling.run()
    assert int((arena.view(torch.int32) == -1).sum()) == 4 * n
    assert ceiling.other is not None
    ceiling.other()
    assert not arena.view(torch.int32).any()


@pytest.mark.parametrize(("numel", "small"), [(64, True), (2**17, False)])
def test_many_small_tensors_are_held_against_memory_in_one_piece_too(
    numel: int, small: bool
) -> None:
    params = make_params([(numel,)] * 5)
    optimizer = AdamCScheduleFreePlus(params, backend="cpu")
    optimizer.train()
    optimizer.step(loss=1.0)
    memory = of_step(optimizer, lambda: optimizer.step(loss=1.0), params)
    found = loops_beside(torch.zeros(10_000), [BOTH], 5 * numel, memory)
    one_piece = IN_ONE_PIECE.format(name=name_of(BOTH))
    assert list(found) == [name_of(BOTH), *([one_piece] if small else [])]
    assert found[name_of(BOTH)].traffic == 44 * 5 * numel


def test_the_quicker_one_of_memory_in_place_and_in_one_piece() -> None:
    name = name_of((UPDATE,))
    one_piece = IN_ONE_PIECE.format(name=name)
    found = {name: loop_of(UPDATE), one_piece: loop_of(UPDATE)}
    for rounds in ({name: [8.0], one_piece: [4.0]}, {name: [4.0], one_piece: [8.0]}):
        step = timed("a", 3600, [8.0])
        hold_against(step, [8.0], (UPDATE,), found, rounds, has_loops=True)
        assert (step.ceiling, step.percent_of_roofline) == (name, pytest.approx(50))


def test_a_step_and_its_loops_are_timed_close_together() -> None:
    held = {"a": (UPDATE,), "b": (), "c": (UPDATE,), "d": BOTH}
    update, both = name_of((UPDATE,)), name_of(BOTH)
    assert beside(LOOPS, held) == [
        [update, OTHER.format(name=update), "a", "c"],
        [both, OTHER.format(name=both), "d"],
    ]
    assert beside({}, held) == []


def test_a_turn_that_a_step_left_out_does_not_count() -> None:
    nan = float("nan")
    rounds = rounds_of([1.0] * 3, [4.0, 4.0, 4.0], [9.0] * 3)
    step = timed("a", 3600, [8.0, nan, 16.0])
    assert (step.rounds, step.median) == (2, 12)
    hold_against(step, [8.0, nan, 16.0], (UPDATE,), LOOPS, rounds, has_loops=True)
    assert step.percent_of_roofline == pytest.approx(37.5)  # the median of 50 and 25
    assert (step.percent_low, step.percent_high) == (25, 50)


@pytest.mark.parametrize(("n", "left_out"), [(1, 0), (5, 0), (7, 0), (9, 1), (15, 3), (51, 18)])
def test_the_interval_of_a_median(n: int, left_out: int) -> None:
    """As tables of the sign test have it: of 15 values the fourth and the twelfth."""
    values = list(range(n))[::-1]
    assert interval_of_median(values) == (left_out, n - 1 - left_out)


def test_an_interval_holds_the_median_as_often_as_it_says() -> None:
    draws = torch.rand(2000, 15, generator=torch.Generator().manual_seed(0)) ** 3
    held = [low <= 0.125 <= high for low, high in map(interval_of_median, draws.tolist())]
    assert 0.95 <= sum(held) / len(held) <= 0.98  # 0.965 of all


def held_row(percent: float, low: float, high: float) -> rows.Row:
    row = timed("a", 100, [1.0])
    row.ceiling_bandwidth = 100 * 100 / percent
    row.percent_low, row.percent_high = low, high
    return row


def test_a_percentage_that_is_not_sure_is_given_with_its_interval() -> None:
    assert table.percent(held_row(97, 95, 100)) == "97 %"
    assert table.percent(held_row(97, 93.6, 99)) == "97 % [94 - 99]"
    assert table.percent(held_row(97, 96, 101)) == "97 % [96 - 101]"
    assert table.percent(timed("a", 100, [1.0])) == ""


def test_what_is_above_its_ceiling_is_said() -> None:
    found = rows.above_ceilings(
        [held_row(102.9, 101, 104), held_row(104, 99, 108), timed("b", 0, [1.0])]
    )
    assert found == ["a (w): 104 % (99 - 108)"]
    said = "Above their ceilings: a (w): 104 % (99 - 108)."
    assert table.remarks({"above_ceilings": found}) == said
    assert table.remarks({"above_ceilings": found, "machine": {"not_quiet": ["x"]}}).endswith(said)
    assert table.remarks({"above_ceilings": []}) == table.remarks({}) == ""


@pytest.mark.parametrize(("later", "stays"), [(12.0, False), (8.0, True)])
def test_what_seems_quicker_than_its_ceiling_is_measured_longer(
    monkeypatch: pytest.MonkeyPatch, later: float, stays: bool
) -> None:
    """Step "a" takes 9 seconds at first, of which its loop takes 10; "b" is held against another one."""
    monkeypatch.setattr("bench.measure.race.last_level_cache", lambda: 2**20)
    races = Races(torch.device("cpu"), [], quick=True)
    races.quick = False
    update, reduce = name_of((UPDATE,)), name_of((REDUCE,))
    seconds = {"a": 9.0, "b": 9.0, update: 10.0, reduce: 1.0}
    seconds |= {OTHER.format(name=name): 20.0 for name in (update, reduce)}
    asked: list[set[str]] = []

    def take_turns(timer: object, steps: dict, *_: object, **__: object) -> dict:
        asked.append({*steps})
        n = 3 if len(asked) == 1 else 7
        return {name: [later if name == "a" and n == 7 else seconds[name]] * n for name in steps}

    monkeypatch.setattr("bench.measure.race.take_turns", take_turns)
    found = {update: LOOPS[update], reduce: LOOPS[reduce]}
    table_rows = {"a": timed("a", 3600, [1.0]), "b": timed("b", 800, [1.0])}
    held = {"a": (UPDATE,), "b": (REDUCE,)}
    steps = dict.fromkeys("ab", lambda: None)
    rounds = races.turns_beside(steps, table_rows, held, found, "step")
    first, *more = asked
    assert first == {*seconds}
    assert more == [{"a", update, OTHER.format(name=update)}] * (2 if stays else 1)
    assert len({len(own) for own in rounds.values()}) == 1
    row = timed("b", 800, rounds["b"])
    hold_against(row, rounds["b"], held["b"], found, rounds, has_loops=True)
    assert (row.rounds, row.percent_of_roofline) == (3, pytest.approx(100 / 9))
    row = timed("a", 3600, rounds["a"])
    hold_against(row, rounds["a"], held["a"], found, rounds, has_loops=True)
    assert row.percent_of_roofline == pytest.approx(125 if stays else 100 / 1.2)


def test_saved_runs_name_what_is_above_its_ceiling() -> None:
    for path in (ROOT / "bench" / "results").glob("*-cpu/results.json"):
        run = rows.read(path)
        if "above_ceilings" in run.about:  # older runs do not say
            assert run.about["above_ceilings"] == rows.above_ceilings(run.rows)
