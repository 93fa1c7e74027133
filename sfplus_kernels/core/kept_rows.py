"""Rows of hyperparameters, kept as long as the values that they were made of are the same objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_, itemgetter
from types import NoneType
from typing import Any

from sfplus_kernels.state.run import KEPT_KEYS

Rows = tuple[list[tuple[float, ...]], tuple[float, ...]]
"""Of each group one of ``layout.Hyper``, and one of ``layout.Setting``."""

OF_THE_RUN = ("train_mode", "optimizer", "probe", "differentiable", *KEPT_KEYS)
"""Keys of a group that are no hyperparameters, beside the run state without a group."""

UNCHANGEABLE = frozenset({int, float, bool, str, NoneType})


class KeptRows:
    """What checks and rows are made of, as of the last step.

    Args:
        defaults: of a group: all that checks and rows read, and the run state.
        global_keys: see ``Algorithm.global_keys``.
    """

    def __init__(self, defaults: Iterable[str], global_keys: Iterable[str]) -> None:
        others = {*OF_THE_RUN, *global_keys}
        self._read = itemgetter(*(key for key in defaults if key not in others))
        self._values: list[tuple[Any, ...]] | None = None  # None: not to be trusted
        self._rows: Rows | None = None

    def get(self, groups: Sequence[Mapping[str, Any]], make: Callable[[], Rows]) -> Rows:
        """The rows of ``groups``: those of the last call, or what ``make`` makes of changed ones."""
        values = [self._read(group) for group in groups]
        if self._rows is None or not _same(self._values, values):
            self._values = None
            self._rows = make()
            if all(map(_cannot_change, values)):
                self._values = values
        return self._rows


def _same(before: list[tuple[Any, ...]] | None, now: list[tuple[Any, ...]]) -> bool:
    return (
        before is not None
        and len(before) == len(now)
        and all(all(map(is_, old, new)) for old, new in zip(before, now, strict=True))
    )


def _cannot_change(values: tuple[Any, ...]) -> bool:
    """Whether the same objects are the same values: not so of a list, a tensor or an array."""
    return all(
        type(value) in UNCHANGEABLE
        or (type(value) is tuple and UNCHANGEABLE.issuperset(map(type, value)))
        for value in values
    )
