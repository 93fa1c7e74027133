"""Two contestants step after step."""

from __future__ import annotations

import torch

from bench.measure import pairs, timing


def test_a_pair_is_compared_turn_by_turn() -> None:
    """On a machine that is twice as slow in every second turn; who has just begun is not counted."""
    ran: list[str] = []

    class Uneven(timing.CpuTimer):
        def host_time(self, step: timing.Step) -> float:
            step()
            begins = len(ran) < 2 or ran[-2] != ran[-1]
            slow = 1 + len(ran) // (2 * pairs.STEPS) % 2
            return 100.0 if begins else slow * {"base": 1.0, "a": 0.25, "b": 0.5}[ran[-1]]

    def named(name: str) -> timing.Step:
        return lambda: ran.append(name)

    timer = Uneven(torch.ones(64), cache=64)
    others = {"a": named("a"), "b": named("b")}
    found = pairs.take_turns_in_pairs(timer, named("base"), others, 0.0, lambda: None, least=3)
    assert {name: pairs.ratio(pair) for name, pair in found.items()} == {"a": 0.25, "b": 0.5}
    # beside each other, and each is the first in some turn
    turns = [ran[3:][i] for i in range(0, len(ran) - 3, pairs.STEPS)]
    assert all("base" in turns[i : i + 2] for i in range(0, len(turns), 2))
    assert {turns[i] == "base" for i in range(0, len(turns), 2)} == {True, False}
