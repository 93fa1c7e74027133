"""What an optimizer keeps: groups and their run state, per-tensor state, plans, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.backends.registry import check_name
from sfplus_kernels.checkpoints import upstream
from sfplus_kernels.checkpoints.own import checked_state
from sfplus_kernels.compiling import tracing
from sfplus_kernels.contract.layout import Global, Hyper
from sfplus_kernels.core.hyperparameters import check_shared
from sfplus_kernels.engine import engine as ops
from sfplus_kernels.engine.delayed_figures import DelayedFigures
from sfplus_kernels.engine.engine import Engine
from sfplus_kernels.engine.plans import KeptPlan, move_key, step_key
from sfplus_kernels.processes.collective import Collective
from sfplus_kernels.processes.sharding import local, local_gradients
from sfplus_kernels.state import run as run_state
from sfplus_kernels.state.tensors import TensorState, create_missing_state, make_entries

ALONE = Collective()
"""With the processes of the default group, if there are any."""


class StatefulOptimizer(torch.optim.Optimizer):
    """An optimizer whose run state lives in fp64 buffers on the parameters' device.

    ``param_groups`` show it as of the last ``state_dict()``, ``metrics()`` or pickle, whichever came last:
    reading it costs a synchronisation.
    """

    # What an algorithm adds to this class; see also check_group, check_settings and state_tensors.
    shared_arguments: tuple[str, ...] = ("maximize",)  # the same in all groups
    # run state without a group: key in the groups -> its place
    global_keys: Mapping[str, Global] = run_state.COUNTERS_OF_SKIPS
    advances_without_gradients = True  # whether a step with no gradient at all counts
    has_modes = True  # whether the parameters hold y in train mode and x in eval mode

    # torch wraps the step of each class with it
    profile_hook_step = staticmethod(tracing.hooked)  # type: ignore[assignment]

    # Class-level defaults: pickle and deepcopy rebuild an optimizer from state and groups alone.
    _backend_name: str | None = None
    _collective = ALONE  # process groups cannot be pickled: a copy has the default one
    _engine: Engine | None = None
    _step_plan: KeptPlan | None = None
    _move_plans: Mapping[str, KeptPlan] = MappingProxyType({})  # by what each is for
    _n_groups = 0
    _no_gradients = False
    _delayed: DelayedFigures | None = None  # from the first metrics(wait=False) on
    _loading: Mapping[Tensor, TensorState] | None = None
    _settled = True  # False while a loaded state has z instead of the displacement

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        backend: str | None,
        collective: Collective = ALONE,
    ) -> None:
        check_name(backend)
        self._backend_name = backend
        self._collective = collective
        params = [params] if isinstance(params, Tensor) else list(params)
        if not any(p["params"] if isinstance(p, dict) else True for p in params):
            raise ValueError(
                "got an empty parameter list; expected at least one parameter: is it an iterator that "
                "was used up, or a model without parameters?"
            )
        run = dict.fromkeys((*self.global_keys, *run_state.GROUP_KEYS), 0)
        mode = {"train_mode": not self.has_modes, "optimizer": type(self).__name__}
        super().__init__(params, defaults | run | mode)
        if backend is not None:
            self._get_engine()  # a named backend that is unavailable raises here, not at step 1

    # -- groups and their checks ------------------------------------------------------------------

    def check_group(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The hyperparameters of a group as a row of ``layout.Hyper``; raises if out of range."""
        raise NotImplementedError

    def check_settings(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The global settings as ``layout.Setting``; raises if out of range."""
        raise NotImplementedError

    def state_tensors(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the buffers that a parameter of this group has in its state."""
        raise NotImplementedError

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """What ``lr_max`` is before the first step."""
        raise NotImplementedError

    def beta_of_y(self, group: Mapping[str, Any]) -> float:
        """beta with which the last step of a group wrote y."""
        return self.check_group(group)[Hyper.SF_BETA1]

    def upstream_arguments(self) -> list[str]:
        """The hyperparameters that upstream's class of this name has too."""
        return upstream.arguments(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``k`` starts at 0, its mode is that of the optimizer.

        Raises:
            TypeError, ValueError: parameters or hyperparameters that cannot be used.
        """
        settled = list(self.param_groups)
        self._save_run_state()
        param_group.setdefault("lr_max", self.first_lr_max(self.defaults | param_group))
        if settled:
            param_group.setdefault("train_mode", settled[0]["train_mode"])
            for key in self.global_keys:
                param_group.setdefault(key, settled[0][key])
        super().add_param_group(param_group)
        self._n_groups = len(self.param_groups)
        try:
            self._check_groups()
            ops.check_parameters(self._parameters())
        except Exception:
            self.param_groups[:] = settled
            self._n_groups = len(settled)
            raise
        self._forget_engine()

    def _check_groups(self) -> tuple[list[tuple[float, ...]], tuple[float, ...]]:
        if len(self.param_groups) != self._n_groups:
            raise RuntimeError(
                f"param_groups has {len(self.param_groups)} of the optimizer's {self._n_groups} groups; "
                "expected all of them in one step. DeepSpeed's ZeRO steps each group by itself, where one "
                "step size for all is impossible: make one group there. To add one, use add_param_group()"
            )
        hyper = [self.check_group(group) for group in self.param_groups]
        check_shared(self.param_groups, self.shared_arguments)
        return hyper, self.check_settings(self.param_groups[0])

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _valid_plan(self, params: list[Tensor], gradients: list[Tensor | None]) -> KeptPlan:
        """The plan for these tensors: the last one if nothing moved, else a new one.

        Args:
            gradients: of each parameter's gradient what this process holds (``local_gradients``).
        """
        self._settle()
        active = [p for p, g in zip(params, gradients, strict=True) if g is not None]
        present = [g for g in gradients if g is not None]
        key = step_key(active, present)
        last = self._step_plan
        if last is not None and last.serves(key, self._state_key()):
            return last

        ops.check_not_capturing(params[0].device)
        ops.check_parameters(params)
        for index, (param, grad) in enumerate(zip(params, gradients, strict=True)):
            if grad is not None:
                ops.check_gradient(local(param), grad, index)
        engine = self._get_engine()
        self._create_state(params, gradients)
        dtypes = {id(p): g.dtype for p, g in zip(active, present, strict=True)}
        entries = self._entries(active, dtypes)
        self._step_plan = KeptPlan.make(engine, entries, key, self._state_key())
        return self._step_plan

    def _parameters_with_state(self) -> list[Tensor]:
        self._settle()
        return [p for p in self._parameters() if self.state.get(p)]

    def _valid_move_plan(self, params: list[Tensor], purpose: str = "modes") -> object:
        """As ``_valid_plan``, for a pass that reads no gradients; one is kept for each ``purpose``."""
        key = move_key(params)
        last = self._move_plans.get(purpose)
        if last is None or not last.serves(key, self._state_key()):
            ops.check_not_capturing(params[0].device)
            engine = self._get_engine()
            last = KeptPlan.make(engine, self._entries(params), key, self._state_key())
            self._move_plans = {**self._move_plans, purpose: last}
        return last.plan

    def _state_key(self) -> tuple:
        buffers = (self.state_tensors(group) for group in self.param_groups)
        return (id(self.state), len(self.state), *buffers)

    def _entries(
        self, params: list[Tensor], grad_dtypes: Mapping[int, torch.dtype] | None = None
    ) -> list[tuple[ops.Entry, TensorState]]:
        scalars = self._get_engine().run.tensors
        return make_entries(params, self.param_groups, self.state, scalars, grad_dtypes)

    def _all_lr_zero(self) -> bool:
        return all(float(group["lr"]) == 0 for group in self.param_groups)

    def _only_create_state(self) -> None:
        """What ``step()`` without a loss or a closure does for loaders of checkpoints.

        These set every ``lr`` to 0, and gradients to zero, to have the state made; nothing else changes.
        """
        params = self._parameters()
        self._create_state(params, local_gradients(params))

    def _create_state(self, params: list[Tensor], gradients: list[Tensor | None]) -> None:
        names = [self.state_tensors(group) for group in self.param_groups for _ in group["params"]]
        create_missing_state(self.state, params, gradients, names)

    # -- run state and checkpoints ------------------------------------------------------------------

    def _get_engine(self) -> Engine:
        """The engine, made from the groups' run state at first use or after the model moved."""
        device = self._parameters()[0].device
        if self._engine is not None and self._engine.device != device:
            self._save_run_state()
            self._forget_engine()
        if self._engine is None:
            params = self._parameters()
            ops.check_parameters(params)
            engine = Engine(self._backend_name, device, len(self.param_groups), len(params))
            run_state.into_engine(self.param_groups, engine, self.global_keys)
            self._engine = engine
        return self._engine

    def _forget_engine(self) -> None:
        self._engine = self._step_plan = self._delayed = None
        self._move_plans = {}

    def _save_run_state(self) -> None:
        """Write the engine's run state into the groups (one synchronisation)."""
        if self._engine is not None:
            figures = self._engine.figures().tolist()
            run_state.into_groups(figures, self.param_groups, self.global_keys)

    @tracing.untraced
    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.Optimizer.state_dict``, with the run state in the groups."""
        self._settle()
        self._save_run_state()
        return super().state_dict()

    @tracing.untraced
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()`` of the same class; every buffer keeps its dtype and its bits.

        Load the parameters, before or after, in the mode (train or eval) in which both were saved. The
        state of the ``schedulefree`` package's class of this name is taken too, or of its reference.

        Raises:
            ValueError: a state of another class, other groups, shapes or dtypes; nothing has changed.
        """

        def check_last(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            # Runs after the user's own hooks. torch would cast the state to the parameter's dtype,
            # so it gets none, and __setstate__ puts ours in its place.
            groups, self._loading = checked_state(self, loaded)
            return {**loaded, "state": {}, "param_groups": groups}

        handle = self.register_load_state_dict_pre_hook(check_last)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    @torch.no_grad()
    def _settle(self) -> None:
        """Give every state that came from upstream its displacement, now that the parameters are there."""
        if self._settled:
            return
        for group in self.param_groups:
            b = self.beta_of_y(group)
            for param in group["params"]:
                state = self.state.get(param)
                if state and "displacement" not in state:
                    upstream.settle(param, state, b, group["train_mode"])
        self._settled = True

    @torch.no_grad()
    def to_upstream_state_dict(self) -> dict[str, Any]:
        """A state dict that the ``schedulefree`` package's class of this name loads and continues from.

        Save the parameters with it, in the same mode. Each tensor's own count of steps is lost: upstream
        has one for the group. ``inner_momentum`` needs upstream's development version.
        """
        return upstream.upstream_state_dict(self, with_x_and_y=False)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        self._save_run_state()
        return {**super().__getstate__(), "_backend_name": self._backend_name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._loading is not None:
            state["state"].update(self._loading)
            self._settled = all("displacement" in one for one in self._loading.values())
        super().__setstate__(state)
        self._n_groups = len(self.param_groups)
        self._forget_engine()
        for group in self.param_groups:  # keys that an older version did not save
            for key, value in self.defaults.items():
                if key != "differentiable":  # torch's own, which it does not put into groups either
                    group.setdefault(key, value)
