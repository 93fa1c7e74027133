"""What an optimizer keeps: groups and their run state, per-tensor state, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints import upstream
from sfplus_kernels.checkpoints.own import checked_state
from sfplus_kernels.checkpoints.unsettled import settle
from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.contract.formats import DEFAULTS
from sfplus_kernels.contract.layout import Global, Hyper, Setting
from sfplus_kernels.core.backend_choice import tell_choice, tell_left_behind
from sfplus_kernels.core.description import described, offered
from sfplus_kernels.core.hyperparameters import (
    check_bounds_of_m,
    check_row_norm,
    check_seed,
    check_shared,
)
from sfplus_kernels.core.kept_rows import KeptRows, Rows
from sfplus_kernels.core.known_groups import KnownGroups
from sfplus_kernels.core.torch_habits import TorchHabits
from sfplus_kernels.core.wrappers import of_the_inner
from sfplus_kernels.engine.engine import check_backend
from sfplus_kernels.engine.runtime import Runtime
from sfplus_kernels.state import run
from sfplus_kernels.state.checks import check_containers, parameters_or_groups
from sfplus_kernels.state.containers import Containers, TensorState


class StatefulOptimizer(TorchHabits, torch.optim.Optimizer):
    """An optimizer whose run state lives in fp64 buffers on the parameters' device.

    ``param_groups`` show it as of the last ``state_dict()``, ``metrics()`` or pickle, whichever came last:
    reading it costs a synchronisation.
    """

    # What an algorithm adds to this class, as ``contract.algorithm.Algorithm`` wants it.
    shared_arguments: tuple[str, ...] = ()  # the same in all groups
    # run state without a group: key in the groups -> its place
    global_keys: Mapping[str, Global] = run.COUNTERS_OF_SKIPS
    has_modes = False  # whether the parameters hold y in train mode and x in eval mode
    twice_a_step = False  # whether y and x are written into them in turn
    needs_loss = False  # whether a step needs the loss

    # Class-level defaults: pickle and deepcopy rebuild an optimizer from state and groups alone.
    _backend_name: str | None = None
    _runtime: Runtime | None = None  # all that is derived from groups and state
    _known: KnownGroups | None = None  # param_groups as of the last look
    _kept_rows: KeptRows | None = None
    _loading: Mapping[Tensor, TensorState] | None = None
    _settled = True  # False while a loaded state may be in another form

    def __init__(self, params: Any, defaults: dict[str, Any], backend: str | None) -> None:
        check_backend(backend)
        self._backend_name = backend
        run_state = dict.fromkeys((*self.global_keys, *run.KEPT_KEYS), 0)
        mode = {"train_mode": not self.has_modes, "optimizer": type(self).__name__, "probe": ()}
        super().__init__(parameters_or_groups(params), DEFAULTS | defaults | run_state | mode)
        if backend is not None:
            self._get_runtime()  # a named backend that is unavailable raises here, not at step 1

    # -- groups and their checks ------------------------------------------------------------------

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The hyperparameters of a group as a row of ``layout.Hyper``; raises if out of range."""
        raise NotImplementedError

    def settings_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The global settings as ``layout.Setting``; raises if out of range."""
        raise NotImplementedError

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the buffers that a parameter of this group has in its state."""
        raise NotImplementedError

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """What ``lr_max`` is before the first step."""
        raise NotImplementedError

    def beta_of_y(self, group: Mapping[str, Any]) -> float:
        """beta with which the last step of a group wrote y."""
        return self.hyper_row(group)[Hyper.SF_BETA1]

    def upstream_arguments(self) -> list[str]:
        """The hyperparameters that upstream's class of this name has too."""
        return upstream.arguments(type(self))

    @of_the_inner
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``k`` starts at 0, its mode is that of the optimizer.

        Raises:
            TypeError, ValueError: parameters or hyperparameters that cannot be used.
        """
        settled = list(self.param_groups)
        if settled:
            self._follow_groups()
        if isinstance(param_group, dict):
            self._complete(param_group, settled)
        super().add_param_group(param_group)
        try:
            self._rows()
            check_containers(self._containers())
        except Exception:
            self.param_groups[:] = settled
            raise
        if settled:
            self._follow_groups()
        else:
            self._known = KnownGroups(self.param_groups)

    def _complete(self, group: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
        """Give a group the run state that it lacks; what is one for all, from the ``others``."""
        group.setdefault("lr_max", self.first_lr_max(self.defaults | group))
        if others:
            for key in ("train_mode", *self.global_keys):
                group.setdefault(key, others[0][key])

    def _fill_in(self, group: dict[str, Any]) -> None:
        for key, value in (DEFAULTS | self.defaults).items():
            if key != "differentiable":  # torch's own, which it does not put into groups either
                group.setdefault(key, value)

    @property
    def steps_groups_together(self) -> bool:
        """Whether the step of one group depends on the gradients of the others."""
        return False

    def _follow_groups(self, *, stepping: bool = False) -> None:
        """Whatever was done to ``param_groups``: run state goes with its group, new groups become complete.

        Raises:
            RuntimeError: a step with some of the groups, where it needs all of them.
        """
        known, groups = self._known, self.param_groups
        if known is not None and known.are(groups):
            return
        change = (known or KnownGroups([])).change(groups)
        if change.lost or change.new:
            self._save_run_state()
        if stepping and change.elsewhere and self.steps_groups_together:
            change.refuse()
        for group, twin in change.copies:
            kept = (*run.KEPT_KEYS, *self.global_keys, "train_mode", "optimizer")
            group.update({key: twin[key] for key in kept if key in twin})
        for group in change.new:
            self._complete(group, change.before)
            self._fill_in(group)
        self._known = KnownGroups(groups)

    def _check_groups(self) -> Rows:
        self._follow_groups(stepping=True)
        if self._kept_rows is None:
            self._kept_rows = KeptRows(self.defaults, self.global_keys)
        return self._kept_rows.get(self.param_groups, self._rows)

    def _rows(self) -> Rows:
        hyper = []
        for group in self.param_groups:
            row = list(self.hyper_row(group))
            row[Hyper.ROW_NORM] = check_row_norm(group["row_norm"])
            hyper.append(tuple(row))
        check_bounds_of_m(hyper, self._containers())
        check_shared(self.param_groups, (*self.shared_arguments, "rounding_seed"))
        settings = self.settings_row(self.param_groups[0])[: Setting.ROUNDING_SEED]
        return hyper, (*settings, check_seed(self.param_groups[0]["rounding_seed"]))

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _containers(self) -> Containers:
        """What a step reads of this optimizer: as it is now, for one call."""
        buffers = [self.buffers(group) for group in self.param_groups]
        return Containers(self.param_groups, self.state, buffers, self.twice_a_step)

    # -- run state and checkpoints ------------------------------------------------------------------

    def _get_runtime(self) -> Runtime:
        """What is derived from groups and state; made anew if it is not true to them any more."""
        self._settle()
        self._follow_groups()
        containers = self._containers()
        if self._runtime is not None and not self._runtime.serves(containers):
            self._save_run_state()
            tell_left_behind(self, self._runtime.engine)
            self._runtime = None
        if self._runtime is None:
            self._runtime = Runtime(self._backend_name, containers, self.global_keys)
            tell_choice(self._runtime.engine)
        return self._runtime

    @property
    def backend(self) -> str:
        """Name of the backend that takes the steps, where the parameters are now."""
        return self._get_runtime().engine.backend_name

    def __repr__(self) -> str:
        runtime = self._runtime
        backend = self._backend_name if runtime is None else runtime.engine.backend_name
        return described(self, backend, has_modes=self.has_modes)

    def __dir__(self) -> list[str]:
        return offered(super().__dir__())

    def _save_run_state(self) -> None:
        """Write the engine's run state into the groups (one synchronisation)."""
        if self._runtime is not None:
            self._runtime.take_over_what_was_written()
            self._runtime.save()

    @untraced
    @of_the_inner
    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.Optimizer.state_dict``, with the run state in the groups."""
        self._settle()
        self._follow_groups()
        self._save_run_state()
        return super().state_dict()

    @untraced
    @of_the_inner
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()`` of the same class: the same bits, or rounded to this ``state_format``.

        Load the parameters, before or after, in the mode (train or eval) in which both were saved. The
        state of the ``schedulefree`` package's class of this name is taken too, or of its reference.

        Raises:
            ValueError: a state of another class, other groups, shapes or dtypes; nothing has changed.
        """

        def check_last(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            # After the user's own hooks. torch would cast the state, and gets none: __setstate__ puts it in.
            groups, self._loading = checked_state(
                type(self).__name__, self, self.param_groups, loaded, self.defaults
            )
            for group, own in zip(groups, self.param_groups, strict=True):
                if "param_names" not in own:  # torch wants them in all groups or in none
                    group.pop("param_names", None)
            return {**loaded, "state": {}, "param_groups": groups}

        self._follow_groups()
        handle = self.register_load_state_dict_pre_hook(check_last)
        try:
            with torch.inference_mode(False):
                super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def _settle(self) -> None:
        """Bring loaded state into its form, now that the parameters are there (checkpoints/unsettled.py)."""
        if self._settled:
            return
        with torch.inference_mode(False), torch.no_grad():
            for group in self.param_groups:
                for param in filter(self.state.get, group["params"]):
                    settle(param, self.state[param], group)
        self._settled = True

    @torch.no_grad()
    @of_the_inner
    def to_upstream_state_dict(self) -> dict[str, Any]:
        """A state dict that the ``schedulefree`` package's class of this name loads and continues from.

        Save the parameters with it, in the same mode. Each tensor's own count of steps is lost: upstream
        has one for the group. ``inner_momentum`` needs upstream's development version;
        ``maximize``, ``max_grad_norm`` and ``decoupling_c`` raise ValueError, for upstream has none of them.
        """
        return self._upstream_state_dict(with_x_and_y=False)

    def _upstream_state_dict(self, *, with_x_and_y: bool) -> dict[str, Any]:
        return upstream.upstream_state_dict(
            self, self.state_dict(), self._parameters(), with_x_and_y=with_x_and_y
        )

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        self._follow_groups()
        self._save_run_state()
        return {**super().__getstate__(), "_backend_name": self._backend_name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._loading is not None:
            state["state"].update(self._loading)
            self._settled = False
        super().__setstate__(state)
        if self._runtime is not None:
            tell_left_behind(self, self._runtime.engine)
        self._runtime = None
        for group in self.param_groups:  # keys that an older version did not save
            self._fill_in(group)
        self._known = KnownGroups(self.param_groups)
