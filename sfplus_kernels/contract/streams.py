"""Memory that was made on one CUDA stream and is used on another.

torch gives a tensor's memory out again in the order of the stream that it was made on. State that lives for
ever has nothing to fear; a plan does not live so long, and is often made on the side stream of a warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class StreamUse:
    """Keeps the memory of some tensors from being given out while a stream that used them still works.

    Args:
        device: theirs.
        tensors: all made on the stream that is current now.
    """

    def __init__(self, device: torch.device, tensors: Sequence[Tensor]) -> None:
        self._device, self._tensors = device, tensors
        self._known = {current_stream(device)}

    def note(self) -> int:
        """To be called before each use; returns ``current_stream``."""
        stream = current_stream(self._device)
        if stream not in self._known:
            self._known.add(stream)
            for tensor in self._tensors:
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return stream


def current_stream(device: torch.device) -> int:
    """The address of the device's current stream, without making an object of it; 0 where there are none."""
    if device.type != "cuda":
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    stream: int = torch._C._cuda_getCurrentRawStream(index)
    return stream
