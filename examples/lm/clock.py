"""Times of a step on the CPU or on a GPU, without waiting for the GPU in every step."""

from __future__ import annotations

import time

import torch

Mark = float | torch.cuda.Event


class Clock:
    """On a GPU the marks are events in its queue: they time its work, not that of the launching CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def mark(self) -> Mark:
        """Now, or when the GPU gets there."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Until every mark has been reached."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, start: Mark, end: Mark) -> float:
        """Between two marks that have been reached."""
        if isinstance(start, float) and isinstance(end, float):
            return end - start
        assert isinstance(start, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end)) / 1000
