"""Whether a model and an optimizer that were loaded were saved in one mode, seen by a few elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ELEMENTS = 16
"""Of one parameter, that are looked at."""


def witness(params: Sequence[Tensor]) -> int | None:
    """Place of a small parameter that can be looked at; None if none can (DTensors, no memory)."""
    places = [
        place
        for place, param in enumerate(params)
        if type(param.detach()) is Tensor and param.numel() and param.device.type != "meta"
    ]

    def small_enough(place: int) -> tuple[bool, int]:
        n = params[place].numel()
        return n < ELEMENTS, abs(n - ELEMENTS)

    return min(places, key=small_enough, default=None)


def probe(place: int, held: Tensor, otherwise: Tensor) -> tuple[float, ...]:
    """``place``, elements that the parameter there holds, and those that it would hold in the other mode."""
    return (float(place), *_elements(held).tolist(), *_elements(otherwise).tolist())


class LoadedPair:
    """What a parameter held when it was used first after loading, on its way to the host."""

    def __init__(self, saved: Sequence[float], params: Sequence[Tensor]) -> None:
        """``saved`` is of ``probe``."""
        param, middle = params[int(saved[0])], (len(saved) + 1) // 2
        values = torch.tensor(saved, dtype=torch.float64)
        self._held, self._otherwise = values[1:middle], values[middle:]
        elements = _elements(param)
        on_gpu = param.device.type == "cuda"
        self._now = torch.empty(elements.shape, dtype=elements.dtype, pin_memory=on_gpu)
        self._now.copy_(elements, non_blocking=True)
        # what the kernels round to 16 bits is the same, or nobody knows
        self._precision = 16 * torch.finfo(param.dtype).eps if param.dtype.itemsize > 2 else 0.0

    def of_the_other_mode(self) -> bool:
        """Whether the parameters are as of the other mode; ask when later work is known to be done."""
        return self._is(self._otherwise) and not self._is(self._held)

    def _is(self, values: Tensor) -> bool:
        if values.shape != self._now.shape:
            return False
        return torch.allclose(self._now, values, self._precision, self._precision)


def _elements(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten()[:ELEMENTS].double()
