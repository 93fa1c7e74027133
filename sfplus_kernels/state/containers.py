"""An optimizer's own containers, as one step finds them."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple

from torch import Tensor

TensorState = dict[str, Tensor]
"""The state of one parameter: its buffers and scalars by name."""


class Containers(NamedTuple):
    """What a step or a move reads of an optimizer, taken afresh each time.

    Trainers, pruners and loaders replace and change all of it between two steps: nobody keeps it longer than
    the call that it was handed to.
    """

    groups: list[dict[str, Any]]  # param_groups itself
    state: MutableMapping[Tensor, TensorState]  # the optimizer's state itself
    params: list[Tensor]  # of all groups, in their order
    buffers: list[tuple[str, ...]]  # which a parameter of each group has; see formats
