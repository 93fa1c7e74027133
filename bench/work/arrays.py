"""The arrays of a pass over memory, by the bytes that an element of each has."""

from __future__ import annotations

from typing import NamedTuple


class Arrays(NamedTuple):
    """Arrays that go side by side: those that are changed in place, so read and written, and those only read.

    An array that is only written counts as changed: its lines come from memory before they go back to it.
    """

    changed: tuple[int, ...] = ()
    read: tuple[int, ...] = ()

    @property
    def bytes_read(self) -> int:
        return sum(self.changed) + sum(self.read)

    @property
    def bytes_per_element(self) -> int:
        """Read and written."""
        return self.bytes_read + sum(self.changed)

    @property
    def name(self) -> str:
        """Such as "read 4, change 4+4+4 B"."""
        kinds = (("read", self.read), ("change", self.changed))
        return ", ".join(f"{kind} {'+'.join(map(str, w))}" for kind, w in kinds if w) + " B"
