"""Clipping by the trainer, taken over by the optimizer: a clip before the step enlarges the Polyak step."""

from __future__ import annotations

from typing import Any

from sfplus_kernels.optim import unwrap


def take_over_clipping(optimizer: Any, max_norm: float | None) -> bool:
    """Set ``max_grad_norm`` of an optimizer that has it; one that was set on the optimizer itself stays.

    Args:
        max_norm: that of the trainer; None or 0 where it does not clip.

    Returns:
        Whether the optimizer clips, and the trainer is to stop.
    """
    groups = unwrap(optimizer).param_groups
    if any("max_grad_norm" not in group for group in groups):
        return False  # such as ScheduleFreeWrapper, where the base sees what the trainer leaves
    if max_norm and groups[0]["max_grad_norm"] is None:
        for group in groups:
            group["max_grad_norm"] = float(max_norm)
    return groups[0]["max_grad_norm"] is not None
