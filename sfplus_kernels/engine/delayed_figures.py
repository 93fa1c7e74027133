"""Figures of finished steps, without waiting for the device: copies to the host that arrive when they do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from sfplus_kernels.contract.capture import capturing
from sfplus_kernels.engine.engine import Engine

COPIES = 4
"""Under way or the newest that arrived: a step that finds none free is not copied."""


class DelayedFigures:
    """The newest of an engine's figures that have arrived on the host.

    Args:
        figures: makes them on the device; None is the engine's own.
    """

    def __init__(self, engine: Engine, figures: Callable[[], Tensor] | None = None) -> None:
        self._engine = engine
        self._figures = figures or engine.figures
        self._on_gpu = engine.device.type == "cuda"
        size = self._figures().numel()
        self._free = [
            torch.zeros(size, dtype=torch.float64, pin_memory=self._on_gpu) for _ in range(COPIES)
        ]
        self._under_way: deque[tuple[torch.cuda.Event | None, Tensor]] = deque()
        self._newest: Tensor | None = None  # one of the copies

    def send(self) -> None:
        """Start a copy of the figures as the work that is queued so far will leave them."""
        if capturing(self._engine.device):
            return  # where asking whether a copy has arrived would break the capture too
        self._collect()  # or nobody would, where figures are asked for once in many steps
        if not self._free:
            return
        copy, event = self._free.pop(), None
        copy.copy_(self._figures(), non_blocking=True)
        if self._on_gpu:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._engine.device))
        self._under_way.append((event, copy))

    def newest(self) -> list[float] | None:
        """What arrived last, or None if nothing has yet."""
        if not capturing(self._engine.device):
            self._collect()
        return None if self._newest is None else self._newest.tolist()

    def _collect(self) -> None:
        while self._under_way:
            event, copy = self._under_way[0]
            if event is not None and not event.query():
                break
            self._under_way.popleft()
            if self._newest is not None:
                self._free.append(self._newest)
            self._newest = copy
