"""A state dict in another format than the optimizer's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sfplus_kernels.state.containers import has_own
from sfplus_kernels.state.conversion import beside


def in_format(
    saved: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], state_format: str
) -> dict[str, Any]:
    """``saved`` in ``state_format``; its tensors are copies.

    Args:
        saved: the optimizer's own state dict, as of now.
        groups: its ``param_groups``, with the parameters.
    """
    states: dict[Any, Any] = {}
    for group, own in zip(saved["param_groups"], groups, strict=True):
        b, train_mode = float(group["y_beta"]), bool(group["train_mode"])
        for param, number in zip(own["params"], group["params"], strict=True):
            state = saved["state"].get(number)
            if state is None:
                continue
            copied = {
                name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
                for name, value in state.items()
            }
            if has_own(copied):
                beside(param, copied, state_format, b, train_mode=train_mode)
            states[number] = copied
    converted = [{**group, "state_format": state_format} for group in saved["param_groups"]]
    return {**saved, "state": states, "param_groups": converted}
