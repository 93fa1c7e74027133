"""Steps that are recorded into a CUDA graph instead of run: what a replay reads must stay as it is.

A recorded copy from host memory reads that memory at every replay. So it is pinned memory of its own, made
before the capture began (CUDA forbids to make it inside), never written again, and kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STEPS = 8
"""Steps that may be recorded between two steps that are run: for so many there is memory ready."""


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of ``device``."""
    if device.type != "cuda":
        return False
    if device.index in (None, torch.cuda.current_device()):
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):  # ten times the time of the question
        return torch.cuda.is_current_stream_capturing()


def check_recordable(what: str, value: float | Tensor | None, device: torch.device) -> None:
    """Raise RuntimeError if a CUDA graph is being captured that could not read this value again."""
    on_device = isinstance(value, Tensor) and value.device.type != "cpu"
    if value is not None and not on_device and capturing(device):
        raise RuntimeError(
            f"{what} is on the host, and a CUDA graph is being captured: its replays would use this value "
            f"for ever; pass a 0-dim tensor on {device}, such as the captured forward pass made"
        )


def check_not_capturing(device: torch.device) -> None:
    """Raise RuntimeError if a CUDA graph is being captured: what has to be made now must outlive it."""
    if capturing(device):
        raise RuntimeError(
            "a CUDA graph is being captured, and the optimizer has no state or no address table for these "
            "tensors yet, which cannot be made inside the graph; run one step (and train(), eval() where the "
            "graph has them) before the capture, with gradients for the same parameters, of the same dtypes"
        )


class HostStock:
    """Host tensors of one shape, ready to be the source of recorded copies."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, pin: bool) -> None:
        self._shape, self._dtype, self._pin = tuple(shape), dtype, pin
        self._ready: list[Tensor] = []
        self._given_out: list[Tensor] = []

    def refill(self) -> None:
        """Outside of a capture: make what was given out anew."""
        missing = STEPS - len(self._ready)
        if missing > 0:
            block = torch.empty((missing, *self._shape), dtype=self._dtype, pin_memory=self._pin)
            self._ready += block.unbind()

    def give(self, values: Tensor) -> Tensor:
        """Inside a capture: ``values``, in memory that stays as it is.

        Raises:
            RuntimeError: nothing is left.
        """
        if not self._ready:
            raise RuntimeError(
                f"{STEPS} steps were recorded into CUDA graphs without a step outside of a capture "
                "between them, and for more there is no memory ready; run one optimizer step as usual "
                "before the next capture"
            )
        tensor = self._ready.pop()
        tensor.copy_(values)
        self._given_out.append(tensor)
        return tensor
