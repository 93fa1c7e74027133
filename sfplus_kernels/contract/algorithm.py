"""What an optimizer class answers about its algorithm: functions of a group, without any tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sfplus_kernels.contract.layout import Global


class Algorithm(Protocol):
    """The answers that the rooms below the optimizer classes need; a stub of ten lines can give them."""

    @property
    def has_modes(self) -> bool:
        """Whether the parameters hold y in train mode and x in eval mode."""

    @property
    def global_keys(self) -> Mapping[str, Global]:
        """Run state without a group: key in the groups -> its place."""

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The hyperparameters of a group as a row of ``layout.Hyper``; raises if out of range."""

    def settings_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The global settings as ``layout.Setting``; raises if out of range."""

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the buffers that a parameter of this group has in its state."""

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """What ``lr_max`` is before the first step."""

    def beta_of_y(self, group: Mapping[str, Any]) -> float:
        """beta with which the last step of a group wrote y."""

    def upstream_arguments(self) -> list[str]:
        """The hyperparameters that upstream's class of this name has too."""
