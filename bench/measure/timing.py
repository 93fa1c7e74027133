"""Timing rounds: the caches are filled with something else first, and the contestants take turns."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

Step = Callable[[], Any]


def prepare(step: Step) -> None:
    """What a step wants to be done in front of it, untimed: its method of this name, if it has one."""
    before = getattr(step, "prepare", None)
    if before is not None:
        before()


class CpuTimer:
    """Wall time of a step with cold caches. ``arena`` is memory that no step uses."""

    asynchronous = False  # a step has done its work when it returns

    def __init__(self, arena: Tensor, cache: int) -> None:
        self.sweep = arena[-min(cache // arena.itemsize, arena.numel()) :]

    def flush(self) -> None:
        """Fill the caches with changed lines of other memory, as other work between two steps does.

        As much as the last-level cache holds: of twice as much, and of a quarter, loops took the same time.
        """
        self.sweep.neg_()
        time.sleep(0.002)  # torch's threads, which have just worked, fall asleep as ours do

    def time(self, step: Step) -> float:
        prepare(step)
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    def host_time(self, step: Step) -> float:
        """Of a step with next to nothing to compute."""
        return self.time(step)

    def wait(self) -> None:
        pass


class CudaTimer:
    """A GPU's own time of a step with a cold L2, from events. Never run: no GPU was at hand.

    The device sleeps until the host is ahead of it, else the gaps between launches would be timed and not
    the kernels: 5 ms, or half as long again as the host took for the same step.
    """

    asynchronous = True

    LEAD = 5e-3
    CYCLES = 2e9  # of a second, and hardly more on any GPU

    def __init__(self, arena: Tensor, cache: int) -> None:
        self.leads: WeakKeyDictionary[Step, float] = WeakKeyDictionary()
        self.sweep = arena[-min(4 * cache // arena.itemsize, arena.numel()) :]
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        self.sweep.neg_()

    def time(self, step: Step) -> float:
        if step not in self.leads:
            self.leads[step] = max(self.LEAD, 1.5 * self.host_time(step))
            self.flush()
        prepare(step)
        torch.cuda._sleep(int(self.leads[step] * self.CYCLES))
        self.start.record()
        step()
        self.end.record()
        self.end.synchronize()
        milliseconds: float = self.start.elapsed_time(self.end)
        return milliseconds / 1e3

    def host_time(self, step: Step) -> float:
        """Until the step returns to the host, whose queue is empty when it begins."""
        prepare(step)
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        return seconds

    def wait(self) -> None:
        torch.cuda.synchronize()


Timer = CpuTimer | CudaTimer


SLOW = 0.1
"""Seconds of a step that need not be timed in every turn, for what is worth knowing of it is known sooner."""
FEW = 5
"""Turns of such a step."""


def take_turns(
    timer: Timer,
    steps: Mapping[str, Step],
    budget: float,
    tick: Callable[[], None],
    *,
    close: Sequence[Sequence[str]] = (),
    least: int = 7,
    most: int = 51,
    host: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each round of each step; NaN for a turn that it left out.

    In a turn each step has one round, in an order drawn anew: on a machine that does other things too
    all of them see the same weather. How many turns there are: see ``repeat``. ``close`` are names that come
    one after the other in a turn; slow steps that are not among them take part in ``FEW`` turns. ``tick`` is
    called after each round.
    """
    order = random.Random(0)
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    groups = [list(names) for names in close]
    groups += [[name] for name in steps if not any(name in names for names in close)]
    slow: set[str] = set()
    few = min(FEW, least)

    def turn(number: int, turns: int) -> float:
        order.shuffle(groups)
        for names in groups:
            order.shuffle(names)
        for name in (name for names in groups for name in names):
            if name in slow and number * few // turns == (number - 1) * few // turns:
                rounds[name].append(math.nan)
                continue
            if host:
                seconds = timer.host_time(steps[name])
            else:
                timer.flush()
                seconds = timer.time(steps[name])
            rounds[name].append(seconds)
            tick()
        if number == 0:
            alone = {names[0] for names in groups if len(names) == 1}
            slow.update(name for name in alone if rounds[name][0] > SLOW)
        return sum(rounds[name][0] for name in slow)

    repeat(timer, steps.values(), turn, budget, least=least, most=most)
    return rounds


def repeat(
    timer: Timer,
    steps: Iterable[Step],
    turn: Callable[[int, int], float],
    budget: float,
    *,
    least: int,
    most: int,
) -> None:
    """``turn(number, turns)``, as many times as fit into ``budget`` seconds by the time of the first.

    There are at least ``least`` and at most ``most``; fewer than ``least``, but at least three, where a
    disturbed machine makes them take three times the budget.

    Args:
        steps: those that ``turn`` runs; each is run once before.
        turn: returns how many seconds of the first turn are of what only ``FEW`` turns have.
    """
    for step in steps:
        step()  # allocates what is allocated once
    timer.wait()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        turns, number = least, 0
        while number < turns:
            of_few = turn(number, turns)
            if number == 0:
                first = time.perf_counter() - start
                spare = budget - min(FEW, least) * of_few
                turns = int(min(max(spare / (first - of_few), least), most))
            number += 1
            if number >= 3 and time.perf_counter() - start > 3 * budget:
                break
    finally:
        gc.enable()


def captured(step: Step) -> Step:
    """The step as the replay of a CUDA graph. Never run: no GPU was at hand."""
    current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    try:
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    finally:  # a capture that fails leaves its own stream as the current one
        torch.cuda.set_stream(current)
    return graph.replay
