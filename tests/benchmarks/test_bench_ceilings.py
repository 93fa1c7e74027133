"""What the memory gives, and steps held against it."""

import pytest
import torch
from test_bench import timed

from bench.measure.ceilings import Ceiling, loops, loops_in_place
from bench.measure.held import OTHER, best, ceiling_rows, hold_against
from bench.record import rows
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


def loop_of(arrays: Arrays) -> Ceiling:
    """Over 100 elements."""
    moved, read = 100 * arrays.bytes_per_element, 100 * arrays.bytes_read
    return Ceiling(lambda: None, moved, "", read, other=lambda: None)


LOOPS = {arrays.name: loop_of(arrays) for arrays in (REDUCE, UPDATE)}


def rounds_of(reduce: list[float], update: list[float]) -> dict[str, list[float]]:
    """The loops from the other end take 1 second longer."""
    rounds = {REDUCE.name: reduce, UPDATE.name: update}
    slower = {OTHER.format(name=n): [t + 1 for t in times] for n, times in rounds.items()}
    return {**rounds, **slower}


def test_a_step_is_held_against_the_loops_of_its_passes() -> None:
    rounds = rounds_of([3.0, 3.0, 3.0], [8.0, 8.0, 8.0])
    step = timed("a", 4400, [20.0, 22.0, 30.0])
    baseline = timed(rows.BASELINE, 2800, [11.0])
    hold_against(step, [20.0, 22.0, 30.0], (REDUCE, UPDATE), LOOPS, rounds, has_loops=True)
    loops = ceiling_rows("step", "w", LOOPS, rounds, 100)
    relate([*loops, step, baseline])
    assert step.percent_of_roofline == pytest.approx(50)  # 11 seconds at least
    assert step.ceiling == "read 4+4 B + read 4, change 4+4+4+4 B"
    assert step.bandwidth == 200
    assert step.bytes_per_param == 44
    assert step.bytes_per_param_by_time == pytest.approx(88)
    assert step.ratio_to_baseline == pytest.approx(2)
    assert [row.name for row in loops] == [REDUCE.name, UPDATE.name]
    assert loops[0].percent_of_roofline == pytest.approx(100)
    assert (step.p20, step.median, step.p80) == pytest.approx((20.8, 22, 26.8))


def test_a_step_is_held_against_the_loops_of_the_same_turn() -> None:
    """Where memory is slower from turn to turn, and the step with it, it is at half of what there is."""
    seconds = [20.0, 40.0, 80.0]
    step = timed("a", 4400, seconds)
    rounds = rounds_of([2.0, 4.0, 8.0], [8.0, 16.0, 32.0])
    hold_against(step, seconds, (REDUCE, UPDATE), LOOPS, rounds, has_loops=True)
    assert step.percent_of_roofline == pytest.approx(50)


def test_the_quicker_one_of_two_loops_is_the_ceiling() -> None:
    rounds = rounds_of([3.0, 3.0, 3.0], [8.0, 8.0, 8.0])
    rounds[OTHER.format(name=REDUCE.name)] = [2.0, 4.0, 2.0]
    assert best(LOOPS, rounds)[REDUCE.name] == [2, 3, 2]
    step = timed("a", 800, [4.0])
    hold_against(step, [4.0] * 3, (REDUCE,), LOOPS, rounds, has_loops=True)
    assert step.percent_of_roofline == pytest.approx(50)


def test_a_step_of_many_operations_is_held_against_what_binds_it() -> None:
    """Loops here move 450 bytes a second, and read 400 of 800 in 2."""
    rounds = rounds_of([2.0], [8.0])
    moving, reading = timed("a", 4500, [20.0]), timed("b", 4500, [20.0])
    reading.read = 4400
    for row in (moving, reading):
        hold_against(row, [20.0], (), LOOPS, rounds, has_loops=True)
    assert (moving.ceiling, moving.percent_of_roofline) == ("all bytes moved", pytest.approx(50))
    assert (reading.ceiling, reading.percent_of_roofline) == ("bytes read", pytest.approx(55))


def test_without_loops_there_is_one_ceiling() -> None:
    found = {"copy": Ceiling(lambda: None, 800, "a <- b", 400)}
    step = timed("a", 4400, [22.0])
    hold_against(step, [22.0], (REDUCE, UPDATE), found, {"copy": [2.0]}, has_loops=False)
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
    assert list(memory) == recorder.arrays
    found = loops_in_place(memory)
    assert sum(c.traffic for c in found.values()) * (70 * 64 + 33 + 128) == recorder.bytes * (
        70 * 64 + 128
    )
    states = [
        t for p in params for t in optimizer.state[p].values() if torch.is_tensor(t) and t.dim()
    ]
    tensors = [*params, *(p.grad for p in params if p.grad is not None), *states]
    before = [bits(t) for t in tensors]
    update = memory[recorder.arrays[-1]]
    assert {t.data_ptr() for side in update.tensors for t in side} == {
        t.data_ptr() for t in tensors
    }
    for ceiling in found.values():
        assert ceiling.other is not None
        assert ceiling.run() == ceiling.other()
    assert [bits(t) for t in tensors] == before


@pytest.mark.parametrize("arrays", [REDUCE, Arrays((2, 4), (2,)), Arrays(changed=(4, 1, 1))])
def test_a_loop_touches_the_arrays_that_it_is_named_after(arrays: Arrays) -> None:
    arena = torch.zeros(100_000)
    (ceiling,) = loops(arena, [arrays], numel=1).values()
    elements = ceiling.traffic // arrays.bytes_per_element
    room = 4 * len(arena) // sum((*arrays.changed, *arrays.read))
    assert room - 64 < elements <= room  # as many as there is room for
    assert ceiling.read == elements * arrays.bytes_read
    ceiling.run()
    changed = int((arena.view(torch.int8) == -1).sum())
    assert changed == elements * sum(arrays.changed)
