"""The step that all optimizers share, and its figures. No mathematics here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks

from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.contract.capture import capturing, check_recordable
from sfplus_kernels.contract.layout import Global
from sfplus_kernels.core.monitored import MonitoredOptimizer
from sfplus_kernels.core.runaway import Runaway
from sfplus_kernels.core.shared_step import SharedStep
from sfplus_kernels.core.wrappers import of_the_inner
from sfplus_kernels.engine.engine import Passes, Scaling
from sfplus_kernels.engine.runtime import HeldStep, ReadyStep
from sfplus_kernels.processes.collective import Collective
from sfplus_kernels.processes.sharding import local, local_gradients
from sfplus_kernels.state import run
from sfplus_kernels.state.checks import is_fake
from sfplus_kernels.state.containers import Containers, has_own
from sfplus_kernels.state.conversion import park
from sfplus_kernels.state.tensors import create_missing_state, elements_by_format

ALONE = Collective()
"""With the processes of the default group, if there are any."""


class FusedOptimizer(MonitoredOptimizer):
    """An optimizer whose step is a few passes over the memory of all tensors.

    Args:
        params: parameters or groups.
        defaults: hyperparameters of a group.
        backend: name of a backend, or None.
        process_group, shard_group, loss_reduce: see ``Collective``.
        shared_step: whom to share the step with, if anybody.
    """

    # For the time of a step torch.amp.GradScaler sets grad_scale and found_inf on the optimizer, and leaves
    # the gradients as they are: update takes the scale out, finalize skips the step if an Inf was found.
    _step_supports_amp_scaling = True

    advances_without_gradients = True  # whether a step with no gradient at all counts
    group_figures = tuple(run.GROUP_KEYS)  # what ``metrics()`` shows of each group

    # Class-level defaults, as in the base class.
    _collective = ALONE  # process groups cannot be pickled: a copy has the default one
    _shared_step: SharedStep | None = None
    _held_back: list[HeldStep] | None = None  # where a list is put here, a step leaves itself in it
    _no_gradients = False
    _runaway: Runaway | None = None  # from the first look on
    _just_loaded = False  # from load_state_dict to the first look

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        backend: str | None,
        *,
        process_group: Any = None,
        shard_group: Any = None,
        loss_reduce: str | None = "mean",
        shared_step: SharedStep | None = None,
    ) -> None:
        self._collective = Collective(process_group, shard_group, loss_reduce)
        super().__init__(params, defaults, backend)
        if shared_step is not None:
            shared_step.join(self)
            self._shared_step = shared_step

    @property
    def shard_group(self) -> Any:
        """The processes among which plain parameters are divided, or None; may be set between steps."""
        return self._collective.shard_group

    @shard_group.setter
    def shard_group(self, group: Any) -> None:
        self._collective = dataclasses.replace(self._collective, shard_group=group)

    def _containers(self) -> Containers:
        containers = super()._containers()
        if self.shard_group is None:
            return containers
        return dataclasses.replace(containers, rank=self._collective.rank_of_part)

    # -- the step -----------------------------------------------------------------------------------

    def check_may_step(self) -> None:
        """Raise RuntimeError if this is no time for a step."""

    def any_gradient(self) -> bool:
        """Whether any parameter has one."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    return True
        return False

    def ready(self) -> ReadyStep:
        """Everything checked and prepared for the passes over this step's gradients."""
        self._settle()
        self._follow_groups(stepping=True)
        containers = self._containers()
        ready = None if self._runtime is None else self._runtime.ready_as_before(containers)
        return self._get_runtime().ready(containers) if ready is None else ready

    def _run_step(
        self,
        loss: float | Tensor | None = None,
        *,
        check_finite: bool = False,
        clip_coef: float | Tensor | None = None,
    ) -> bool:
        """Check everything, then one step; raises before anything changed.

        Returns:
            Whether a step was taken: not without any gradient, where that does not count, and not of fake
            tensors, which only get their state.
        """
        hyper, settings = self._check_groups()
        has_sums = loss is not None or check_finite
        # every process must take part in the sum, also one that has nothing to add
        collective = self._collective if has_sums and self._collective.active else None
        shared = self._shared_step
        self._no_gradients = not (self if shared is None else shared).any_gradient()
        if self._no_gradients and not self.advances_without_gradients and collective is None:
            return False
        first = self._first_parameter()
        if is_fake(first):
            self._only_create_state()
            return False
        check_recordable("the loss", loss, first.device)
        in_doubt = has_sums or hasattr(self, "found_inf") or self._just_loaded
        if in_doubt and self._runtime is not None:
            figures = self._runtime.figures_to_look_at()
            if figures is not None:
                self._look_at(figures)
        ready = self.ready()
        if has_sums:
            self._collective.check_shards(ready.kept.shards)
        runtime, engine = self._runtime, ready.engine
        assert runtime is not None
        runtime.take_over_what_was_written()
        before = engine.set_hyperparameters(hyper, settings, self._lr_tensors())
        if before is not None:
            self._look_at_change(before, hyper)
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        alone = collective is None and shared is None and self._held_back is None
        engine.hand_in(loss, Scaling(scale, found_inf, clip_coef), read_later=alone)
        counts = self.advances_without_gradients or not self._no_gradients
        passes = Passes(has_sums, loss is not None, collective, counts)
        if self._held_back is not None:
            self._held_back.append(HeldStep(runtime, passes, ready.gradients))
        elif shared is not None:
            engine.finish(ready.kept.plan, engine.run, shared.sums(self, ready, collective))
            runtime.after_passes()
        else:
            runtime.run_passes(passes)
        # The kernels write through addresses: without this, a backward() through a tensor that was
        # saved before the step would use the new values and be wrong without a word.
        ready.kept.count_writes()
        return True

    def _look_at_change(
        self, before: Sequence[tuple[float, ...]], now: Sequence[tuple[float, ...]]
    ) -> None:
        """Called when hyperparameters are others than at the step before: rows of ``layout.Hyper``."""

    def hold_back(
        self, step: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> tuple[list[HeldStep], Any]:
        """Call ``step`` without its passes, which torch.compile takes into its graph, if that can be.

        Returns:
            What is left to do, and what ``step`` returned.
        """
        hooks = _global_optimizer_post_hooks or self._optimizer_step_post_hooks
        if hooks or self._shared_step is not None:
            # hooks are to find the step done, and the passes of a shared one take the sums of others
            return [], step(self, *args, **kwargs)
        held: list[HeldStep] = []
        self._held_back = held
        try:
            result = step(self, *args, **kwargs)
        finally:
            self._held_back = None
        return held, result

    def _first_parameter(self) -> Tensor:
        first = next((g["params"][0] for g in self.param_groups if g["params"]), None)
        if first is not None and first.requires_grad:
            return first  # type: ignore[no-any-return]
        params: Iterator[Tensor] = (p for group in self.param_groups for p in group["params"])
        first = next(params)
        return first if first.requires_grad else next((p for p in params if p.requires_grad), first)

    def _all_lr_zero(self) -> bool:
        return all(float(group["lr"]) == 0 for group in self.param_groups)

    def _only_makes_state(self) -> bool:
        """Whether a step is none, but a checkpoint loader's way to have the state made.

        Loaders set every ``lr`` to 0, and gradients to zero where there is no state yet. A first step like
        that would move nothing.
        """
        if not self.param_groups[0]["train_mode"]:
            return self._all_lr_zero()
        if any(map(has_own, self.state.values())):
            return False
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        if not gradients or capturing(gradients[0].device) or is_fake(gradients[0]):
            return False
        return self._all_lr_zero() and not any(bool(local(grad).any()) for grad in gradients)

    def _only_create_state(self) -> None:
        """What ``step()`` without a loss or a closure does for loaders of checkpoints.

        These set every ``lr`` to 0, and gradients to zero, to have the state made; nothing else changes.
        """
        containers = self._containers()
        create_missing_state(containers, local_gradients(containers.params))
        if not self.param_groups[0]["train_mode"]:  # what is loaded into it has this, too
            for param in containers.params:
                park(param, containers.state.get(param, {}))

    def _lr_tensors(self) -> list[tuple[int, Tensor]]:
        """(group, lr) of the learning rates that live on a device other than the host."""
        return [
            (index, group["lr"])
            for index, group in enumerate(self.param_groups)
            if isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu"
        ]

    # -- figures ------------------------------------------------------------------------------------

    def _look_at(self, figures: list[float]) -> None:
        """Warn of what ruins a run; the figures are those of an older step."""
        if self._runaway is None:
            self._runaway = Runaway()
        self._runaway.look(self, figures)

    def _more_of_groups(self, rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
        """Figures that follow from those of the groups, ``rows`` as of ``run.of_group``."""
        return {}

    def figures(self) -> tuple[Global, ...]:
        """What ``metrics()`` shows beside the figures of the groups."""
        return tuple(self.global_keys.values())

    def state_formats(self) -> dict[str, int]:
        """How many elements of the parameters that have state are kept in which format, in this process.

        That may be another one than ``state_format``, which not all tensors can have: see docs/memory.md.
        """
        self._settle()
        return elements_by_format(self.state.get(p, {}) for p in self._parameters())

    @untraced
    @of_the_inner
    def metrics(self, *, wait: bool = True) -> dict[str, float | list[float]]:
        """Figures of the last step under the glossary's names.

        Lists have one value per group. A skipped step shows in ``skipped_steps`` and
        ``consecutive_skipped_steps``, with the loss and sums that caused it; a step without any gradient
        shows in ``no_gradients`` (1.0 or 0.0).

        Args:
            wait: for the device, once. With False nothing is waited for: the figures are those of the newest
                step that the device is known to have finished (``k`` says which), or none at all as long as
                there is no such step. From the first such call on each step sends its figures to the host.
        """
        runtime = self._get_runtime()
        if wait:
            runtime.take_over_what_was_written()
            figures = self._all_figures(runtime)
            run.into_groups(figures, self.param_groups, self.global_keys)
            runtime.note_shown()
        else:
            arrived = runtime.newest_figures()
            if arrived is None:
                return {}
            figures = arrived
        values: dict[str, float | list[float]] = {
            index.name.lower(): figures[index] for index in self.figures()
        }
        groups = [run.of_group(figures, i) for i in range(len(self.param_groups))]
        for key in self.group_figures:
            values[key] = [group[key] for group in groups]
        values |= self._more_of_groups(groups)
        values |= self._drift_figures(figures, waited=wait)
        values["k"] = groups[0]["k"]
        values["no_gradients"] = float(self._no_gradients)
        return values
