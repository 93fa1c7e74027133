"""A state dict in another format than the optimizer's own, checked before."""

from __future__ import annotations

import dataclasses
from typing import Any

from sfplus_kernels.checkpoints.other_formats import in_format
from sfplus_kernels.core.fused import FusedOptimizer
from sfplus_kernels.core.hyperparameters import check_bounds_of_m
from sfplus_kernels.state.checks import check_containers


def state_dict_in(optimizer: FusedOptimizer, state_format: str) -> dict[str, Any]:
    """A copy of ``optimizer.state_dict()``, whose tensors are those of ``state_format``.

    Raises:
        ValueError: an unknown format, or one that this optimizer could not have.
    """
    containers = optimizer._containers()
    groups = [{**group, "state_format": state_format} for group in optimizer.param_groups]
    containers = dataclasses.replace(containers, groups=groups)
    check_containers(containers)
    check_bounds_of_m([optimizer.hyper_row(group) for group in groups], containers)
    return in_format(optimizer.state_dict(), optimizer.param_groups, state_format)
