"""Are an optimizer's containers as they were when a plan was made of them?

The compiled extension answers that in one pass (csrc/containers.cpp); ``PythonWitness`` is its twin for where
there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sfplus_kernels.backends.tensor_reader import PLAIN, extension, tensor_reader
from sfplus_kernels.contract.formats import BUFFERS, STEP
from sfplus_kernels.state.checks import has_memory
from sfplus_kernels.state.containers import Containers

NAMES = (*BUFFERS, STEP)
"""What kernels touch of ``state[p]``."""

Gradients = bool | Sequence[Tensor | None]
"""False: none are read. True: ``p.grad``. Else what this process holds of them, one for each parameter."""

Seen = tuple[list[Tensor], bool]
"""The gradients that there are, and whether one of them is elsewhere than at the last look."""


class Witness(Protocol):
    """Remembers addresses, dtypes, devices, shapes, strides and storages of all that kernels touch."""

    def note(self, groups: object, state: object, gradients: object) -> bool:
        """Remember what is there; False if it cannot be, and then nothing is ever found as it was."""

    def look(self, groups: object, state: object, gradients: object) -> Seen | None:
        """What is there, or None if anything is not as it was noted. Gradients may be elsewhere."""


def new_witness() -> Witness:
    """The compiled one if there is an extension."""
    compiled = extension()
    if compiled is None:
        return PythonWitness()
    witness: Witness = compiled.Witness(tensor_reader(), NAMES)
    return witness


class PythonWitness:
    """See ``Witness``."""

    def __init__(self) -> None:
        self._noted: list[object] | None = None
        self._places: list[object] = []

    def note(self, groups: object, state: object, gradients: object) -> bool:
        """See ``Witness``."""
        look = _Look()
        self._noted = look.noted if look.take(groups, state, gradients) else None
        self._places = []
        return self._noted is not None

    def look(self, groups: object, state: object, gradients: object) -> Seen | None:
        """See ``Witness``."""
        look = _Look()
        if self._noted is None or not look.take(groups, state, gradients):
            return None
        if look.noted != self._noted:
            self._places = []
            return None
        moved, self._places = look.places != self._places, look.places
        return look.gradients, moved


class _Look:
    """One pass over groups and state."""

    def __init__(self) -> None:
        self.noted: list[object] = []  # what must stay
        self.places: list[object] = []  # where the gradients are
        self.gradients: list[Tensor] = []

    def take(self, groups: Any, state: Any, gradients: Any) -> bool:
        """False if there is something that cannot be compared."""
        if not isinstance(groups, list) or not isinstance(state, dict):
            return False
        given = iter(gradients) if isinstance(gradients, list) else None
        for group in groups:
            self.noted.append(len(group["params"]))
            for param in group["params"]:
                self.noted.append(id(param))  # where it is, is looked at beside its state
                if gradients is False:
                    continue
                grad = param.grad if given is None else next(given)
                if given is None and grad is not None and not _is_plain(param, grad):
                    return False
                self.noted.append(grad is None)
                if grad is not None:
                    if not self._see(grad, may_move=True):
                        return False
                    self.gradients.append(grad)
        return self._see_states(state)

    def _see_states(self, state: Mapping[Tensor, Any]) -> bool:
        self.noted.append(len(state))
        for param, own in state.items():
            self.noted.append(id(param))
            if not isinstance(own, dict) or not self._see(param):
                return False
            for name in NAMES:
                self.noted.append(name in own)
                if name in own and not self._see(own[name]):
                    return False
        return True

    def _see(self, tensor: Any, *, may_move: bool = False) -> bool:
        part: Any = tensor if type(tensor) in PLAIN else getattr(tensor, "_local_tensor", None)
        if (
            type(part) not in PLAIN
            or part.layout is not torch.strided
            or part.device.type == "meta"
        ):
            return False
        address, storage = part.data_ptr(), part.untyped_storage()
        self.noted += (part.dtype, part.device, part.shape)
        if may_move:
            self.places.append((address, part.stride()))
            return has_memory(part)
        self.noted += (address, part.stride(), part.storage_offset(), storage.nbytes())
        return bool(address != 0 or part.numel() == 0)


def _is_plain(*tensors: Tensor | None) -> bool:
    return all(type(tensor) in PLAIN for tensor in tensors)


def all_plain(containers: Containers) -> bool:
    """Whether a witness may read ``p.grad`` itself: no parameter and no gradient is a DTensor or the like."""
    return all(_is_plain(p, p.grad) for p in containers.params if p.grad is not None)
