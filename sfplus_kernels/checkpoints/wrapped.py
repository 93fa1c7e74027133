"""State dicts of a wrapper: the base's and the averages' in one, and taken apart again."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from sfplus_kernels.checkpoints.unsettled import Y_BETA
from sfplus_kernels.checkpoints.upstream import RUN_KEYS

STEP = "averaging_step"
"""The averages' ``step``, so called beside that of the base."""

OWN_STATE = ("displacement", "master_param", STEP, Y_BETA)
"""Keys that the averages add to each parameter's part of a state dict; the others are the base's."""


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The base's, with the averages' state beside each parameter's and in ``"averaging"`` of a group."""
    state = {index: dict(values) for index, values in base["state"].items()}
    for index, values in own["state"].items():
        values = dict(values)
        if "step" in values:
            values[STEP] = values.pop("step")
        state.setdefault(index, {}).update(values)
    groups = [
        {**group, "averaging": {k: v for k, v in other.items() if k != "params"}}
        for group, other in zip(base["param_groups"], own["param_groups"], strict=True)
    ]
    return {**base, "state": state, "param_groups": groups}


def merged_upstream(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """As ``merged``, for upstream's wrapper; ``own`` as ``upstream_state_dict`` makes it."""
    state = {index: dict(values) for index, values in base["state"].items()}
    for index, values in own["state"].items():
        state.setdefault(index, {}).update(values)
    groups = [
        {**group, **{key: other[key] for key in RUN_KEYS}}
        for group, other in zip(base["param_groups"], own["param_groups"], strict=True)
    ]
    return {**base, "state": state, "param_groups": groups}


def parted(
    loaded: Mapping[str, Any], base_defaults: Container[str], *, train_mode: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The base's and the averages' part of what ``merged`` or upstream's wrapper made.

    Args:
        base_defaults: the base's own keys of a group.
        train_mode: the averages' present mode, for upstream does not save it.

    Raises:
        ValueError: the state of something else.
    """
    groups = loaded["param_groups"]
    if all("averaging" in group for group in groups):
        own_groups = [{**g["averaging"], "params": g["params"]} for g in groups]
        own_keys: tuple[str, ...] = OWN_STATE
    elif all(key in group for group in groups for key in RUN_KEYS):
        keys = ("lr", "params", *RUN_KEYS)
        mode = {"train_mode": train_mode}
        own_groups = [{key: group[key] for key in keys} | mode for group in groups]
        own_keys = ("x", "y", "z")
    else:
        raise ValueError(
            "the state dict was not saved by ScheduleFreeWrapper: a group has neither 'averaging' nor "
            f"{', '.join(RUN_KEYS)}; load it into the class that wrote it"
        )
    own: dict[Any, dict[str, Any]] = {}
    rest: dict[Any, dict[str, Any]] = {}
    for index, values in loaded["state"].items():
        for key, value in values.items():
            part = own if key in own_keys else rest
            part.setdefault(index, {})["step" if key == STEP else key] = value
    not_the_base = {key for key in ("averaging", *RUN_KEYS) if key not in base_defaults}
    base_groups = [
        {key: value for key, value in group.items() if key not in not_the_base} for group in groups
    ]
    return (
        {**loaded, "state": rest, "param_groups": base_groups},
        {"state": own, "param_groups": own_groups},
    )
