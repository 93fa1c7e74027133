"""What the memory gives, and steps held against it."""

import pytest
import torch
from test_bench import timed

from bench.measure.ceilings import Ceiling, loops
from bench.measure.held import ceiling_rows, hold_against
from bench.record import rows
from bench.record.rows import Row, relate
from bench.work.arrays import Arrays


def loop(arrays: Arrays, seconds: float) -> Row:
    """Over 100 elements."""
    found = {
        arrays.name: Ceiling(
            lambda: None, 100 * arrays.bytes_per_element, "", 100 * arrays.bytes_read
        )
    }
    (row,) = ceiling_rows("step", "w", found, {arrays.name: [seconds] * 3}, 100)
    return row


REDUCE = Arrays(read=(4, 4))
UPDATE = Arrays(changed=(4, 4, 4, 4), read=(4,))


def test_a_step_is_held_against_the_loops_of_its_passes() -> None:
    loops = [loop(REDUCE, 3.0), loop(UPDATE, 8.0)]
    step = timed("a", 4400, [20.0, 22.0, 30.0])
    baseline = timed(rows.BASELINE, 2800, [11.0])
    hold_against(step, (REDUCE, UPDATE), loops, has_loops=True)
    relate([*loops, step, baseline])
    assert step.percent_of_roofline == pytest.approx(50)  # 11 seconds at least
    assert step.ceiling == "read 4+4 B + read 4, change 4+4+4+4 B"
    assert step.bandwidth == 200
    assert step.bytes_per_param == 44
    assert step.bytes_per_param_by_time == pytest.approx(88)
    assert step.ratio_to_baseline == pytest.approx(2)
    assert loops[0].percent_of_roofline == pytest.approx(100)
    assert (step.p20, step.median, step.p80) == pytest.approx((20.8, 22, 26.8))


def test_a_step_of_many_operations_is_held_against_what_binds_it() -> None:
    """Loops here move 450 bytes a second, and read 400 of 800 in 2."""
    loops = [loop(REDUCE, 2.0), loop(UPDATE, 8.0)]
    moving, reading = timed("a", 4500, [20.0]), timed("b", 4500, [20.0])
    reading.read = 4400
    for row in (moving, reading):
        hold_against(row, (), loops, has_loops=True)
    assert (moving.ceiling, moving.percent_of_roofline) == ("all bytes moved", pytest.approx(50))
    assert (reading.ceiling, reading.percent_of_roofline) == ("bytes read", pytest.approx(55))


def test_without_loops_there_is_one_ceiling() -> None:
    found = {"copy": Ceiling(lambda: None, 800, "a <- b", 400)}
    ceilings = ceiling_rows("step", "w", found, {"copy": [2.0] * 3}, 100)
    step = timed("a", 4400, [22.0])
    hold_against(step, (REDUCE, UPDATE), ceilings, has_loops=False)
    assert (step.ceiling, step.percent_of_roofline) == ("copy", pytest.approx(50))


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
