"""How the weights drift: norms and rotations that the update pass forms on the way, if asked to."""

from __future__ import annotations

from typing import Any

from sfplus_kernels.contract.layout import Drift, Global, Group, GroupCoef, Rule, Setting
from sfplus_kernels.core.drift import drift_figures
from sfplus_kernels.core.stateful import StatefulOptimizer
from sfplus_kernels.core.wrappers import of_the_inner
from sfplus_kernels.engine.runtime import Runtime
from sfplus_kernels.processes.collective import Collective
from sfplus_kernels.processes.sharding import shards

MONITORED = ("group", "tensor", None)


class MonitoredOptimizer(StatefulOptimizer):
    """An optimizer whose update pass can be watched."""

    _collective: Collective
    _monitored: str | None = None
    why_not_monitored = ""  # of classes whose update pass shows no drift

    @of_the_inner
    def monitor_drift(self, per: str | None = "group") -> None:
        """From the next step on ``metrics()`` shows norms, rotation and steady state of each group.

        Of y, which is where the gradient is taken and what the weights are without averaging, as it is after
        a step: ``group_weight_norm``, ``group_grad_norm`` (unscaled, and clipped as the step does it),
        ``group_update_norm``, ``group_rotation`` (radians), ``group_grad_ratio`` and ``group_update_ratio``
        (to the weights), ``group_steady_grad_ratio`` and ``group_steady_update_ratio`` (what theory predicts
        for weights that a normalisation follows). A group is one long vector of the tensors that had a
        gradient in the last step. The update pass forms the sums while it has the values: no memory is read
        for it, and no weight gets another bit. A pickle or a copy of the optimizer keeps the setting, a state
        dict does not.

        Args:
            per: "group"; "tensor" for lists of all parameters too, in their order, ``tensor_weight_norm`` and
                so on, NaN where there was no gradient; None to stop.

        Raises:
            ValueError: another ``per``.
            RuntimeError: a closure form or ``ScheduleFreeWrapper``, whose update pass shows no drift; a CUDA
                graph has recorded steps, and goes on with them as they were.
        """
        if per not in MONITORED:
            raise ValueError(f"per is {per!r}; expected one of {MONITORED}")
        if self.why_not_monitored:
            raise RuntimeError(f"drift cannot be monitored here: {self.why_not_monitored}")
        self._get_runtime().watch(per is not None)
        self._monitored = per

    def _get_runtime(self) -> Runtime:
        runtime = super()._get_runtime()
        if runtime.watches != (self._monitored is not None):  # one that was made anew
            runtime.watch(self._monitored is not None)
        return runtime

    @property
    def _divided(self) -> bool:
        """Whether tensors are divided among processes, so that their sums have to be added up."""
        if not self._collective.active:
            return False
        return self._collective.group_shards > 1 or any(shards(p) > 1 for p in self._parameters())

    def _all_figures(self, runtime: Runtime) -> list[float]:
        """``Runtime.figures`` of all processes: waits for the device, and for the others if it has to."""
        together = self._monitored is not None and self._divided
        return runtime.figures(self._collective if together else None).tolist()  # type: ignore[no-any-return]

    def _drift_figures(self, figures: list[float], *, waited: bool) -> dict[str, list[float]]:
        """Those of ``monitor_drift``, out of ``Runtime.figures``.

        Args:
            waited: for ``_all_figures``; else those of tensors that are divided are not to be had.
        """
        if self._monitored is None or (self._divided and not waited):
            return {}
        groups = self.param_groups
        first = len(Global) + len(groups) * len(Group)
        middle = first + len(groups) * len(GroupCoef)
        return drift_figures(
            rows(figures[middle:], len(Drift)),
            rows(figures[first:middle], len(GroupCoef)),
            rows(figures[len(Global) : first], len(Group)),
            Rule(int(self.settings_row(groups[0])[Setting.RULE])),
            groups,
            [self.buffers(group) for group in groups],
            self._monitored,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_monitored": self._monitored}


def rows(values: list[float], width: int) -> list[list[float]]:
    """The rows of a matrix of this width."""
    return [values[start : start + width] for start in range(0, len(values), width)]
