"""The averages that ScheduleFreeWrapper keeps around another optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints import wrapped
from sfplus_kernels.contract.layout import Hyper, Move, Rule, Scalar, Setting
from sfplus_kernels.core.hyperparameters import check_lr, check_number
from sfplus_kernels.core.known_groups import is_in
from sfplus_kernels.core.modes import ScheduleFreeOptimizer
from sfplus_kernels.engine.engine import Engine
from sfplus_kernels.processes.sharding import local_gradients
from sfplus_kernels.state.iterates import Iterates
from sfplus_kernels.state.tensors import make_entries


class Averaging(ScheduleFreeOptimizer):
    """x and y around another optimizer, which finds z in the parameters when it steps."""

    why_not_monitored = (
        "the gradients are read by the optimizer that ScheduleFreeWrapper wraps; take AdamWScheduleFree, "
        "SGDScheduleFree or another class of this package"
    )
    # the base's groups and ours of each
    _of_base: Sequence[tuple[dict[str, Any], dict[str, Any]]] = ()
    _holds_z = False  # during that step, when y and e are not what their names say

    def __init__(
        self,
        groups: list[dict[str, Any]],
        weight_decay_at_y: float,
        momentum: float,
        weight_lr_power: float,
        r: float,
        backend: str | None,
    ) -> None:
        defaults = {
            "lr": 0.0,  # that of the base: see follow_lr
            "momentum": momentum,
            "weight_decay_at_y": weight_decay_at_y,
            "weight_lr_power": weight_lr_power,
            "r": r,
            "maximize": False,
        }
        super().__init__(groups, defaults, backend)

    def hyper_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """A row of ``layout.Hyper``."""
        return Hyper.row(
            lr=check_lr(group["lr"]),
            sf_beta1=check_number("momentum", group["momentum"], 0, 1),
            weight_decay=check_number("weight_decay_at_y", group["weight_decay_at_y"], 0),
            r=check_number("r", group["r"]),
            weight_lr_power=check_number("weight_lr_power", group["weight_lr_power"], 0),
        )

    def settings_row(self, group: Mapping[str, Any]) -> tuple[float, ...]:
        """The values of ``layout.Setting``."""
        return Setting.row(rule=Rule.GIVEN_LR, grad_sign=1.0)

    def buffers(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """e alone."""
        return ("displacement",)

    def upstream_arguments(self) -> list[str]:
        """The base's groups have no other of the averages' settings."""
        return ["lr"]

    def first_lr_max(self, group: Mapping[str, Any]) -> float:
        """As upstream."""
        return 0.0

    def follow_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        """Have the base's groups, whatever was done to them: for each one of its own, with its parameters."""
        self._check_between_steps()
        known = self._of_base or list(zip(groups, self.param_groups, strict=False))
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for group in groups:
            own = next((own for base, own in known if base is group), None)
            if own is None:  # a copy of one that was there, or a new one
                params = set(map(id, group["params"]))
                own = next((o for _, o in known if params.intersection(map(id, o["params"]))), None)
            own = {"params": []} if own is None or is_in(own, [o for _, o in pairs]) else own
            if len(own["params"]) != len(group["params"]) or not all(
                map(is_, own["params"], group["params"])
            ):
                own["params"] = list(group["params"])
            pairs.append((group, own))
        self._of_base = pairs
        if [id(own) for _, own in pairs] != list(map(id, self.param_groups)):
            self.param_groups[:] = [own for _, own in pairs]
            self._follow_groups()

    def forget_base(self) -> None:
        """The base has other groups now, in the order of ours."""
        self._of_base = ()

    def follow_lr(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take ``lr`` from the base's groups, times Prodigy's and D-Adaptation's ``d`` if there is one."""
        for own, group in zip(self.param_groups, groups, strict=True):
            own["lr"] = group["lr"] * group["d"] if "d" in group else group["lr"]

    def _check_between_steps(self) -> None:
        if self._holds_z:
            raise RuntimeError(
                "ScheduleFreeWrapper was asked for x, its state or another mode while the base steps, when "
                "the parameters hold z; ask before or after step(), not in a hook of the base"
            )

    def _set_mode(self, *, train: bool) -> None:
        self._check_between_steps()
        super()._set_mode(train=train)

    def iterates(self, param: Tensor) -> Iterates:
        """As in the base class; raises RuntimeError while the base steps, as ``state_dict()`` does."""
        self._check_between_steps()
        return super().iterates(param)

    def state_dict(self) -> dict[str, Any]:
        """As in the base class."""
        self._check_between_steps()
        return super().state_dict()

    # -- for the wrapper ----------------------------------------------------------------------------

    def only_makes_state(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether a step is no step, but a checkpoint loader's way to have the state made.

        Args:
            groups: the base's, here and below.
        """
        self.follow_lr(groups)
        return self._only_makes_state()

    def make_state(self) -> None:
        """Make the state that a first step would make."""
        self._only_create_state()

    def merged_state_dict(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """``base``, the base's state dict, with the state of the averages."""
        return wrapped.merged(base, self.state_dict())

    def merged_upstream_state_dict(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The same for upstream's wrapper."""
        return wrapped.merged_upstream(base, self.to_upstream_state_dict())

    def load_own_part(
        self, loaded: Mapping[str, Any], base_defaults: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Load the averages' part of what one of the two above made; the rest, which is the base's."""
        train_mode = self.param_groups[0]["train_mode"]
        base, own = wrapped.parted(loaded, base_defaults, train_mode=train_mode)
        self.load_state_dict(own)
        return base

    # -- the step -----------------------------------------------------------------------------------

    @contextmanager
    def z_in_parameters(self) -> Iterator[None]:
        """Within it the parameters with a gradient hold z; then x follows z, and they hold y again.

        If its body raises, x stays and the parameters are put back to y (to rounding).

        Raises:
            TypeError, ValueError: unusable gradients or hyperparameters. Nothing has changed then.
        """
        hyper, settings = self._check_groups()
        runtime, containers = self._get_runtime(), self._containers()
        runtime.take_over_what_was_written()
        gradients = local_gradients(containers.params)
        active = [p for p, g in zip(containers.params, gradients, strict=True) if g is not None]
        self._no_gradients = not active
        plan, engine = runtime.step_plan(containers, gradients).plan, runtime.engine
        engine.set_hyperparameters(hyper, settings, self._lr_tensors())
        self._holds_z = True
        engine.interpolate(plan, Move.EXPOSE_Z)
        torch.autograd.graph.increment_version(active)
        try:
            yield
            hyper, settings = self._check_groups()
        except BaseException:
            self._holds_z = False
            self._take_back_decay(engine, active)
            engine.put_back(runtime.step_plan(self._containers(), gradients).plan)
            raise
        self._holds_z = False
        engine.set_hyperparameters(hyper, settings, self._lr_tensors())
        # p.data may be another tensor now
        engine.absorb_z(runtime.step_plan(self._containers(), gradients).plan)
        torch.autograd.graph.increment_version(active)
        runtime.after_passes()
        for group, gamma in zip(self.param_groups, engine.scheduled_lr, strict=True):
            group["scheduled_lr"] = gamma if isinstance(group["lr"], Tensor) else float(group["lr"])
            group["k"] += 1
        runtime.note_shown()

    def _take_back_decay(self, engine: Engine, active: Sequence[Tensor]) -> None:
        """z - omega y -> z, where y = b x + (1 - b) z. Not made for speed."""
        for entry in make_entries(self._containers(), active):
            hyper = engine.run.hyper[entry.group]
            omega = hyper[Hyper.LR] * hyper[Hyper.WEIGHT_DECAY]
            b, x = engine.run.tensors[entry.slot, Scalar.Y_BETA], entry.displacement
            assert x is not None
            param, y = entry.param.detach(), entry.y.detach()
            if entry.master_param is not None:  # which has not followed the base so far
                y.add_(param.to(y.dtype) - y.to(param.dtype).to(y.dtype))
            y.add_((omega * b).to(x.dtype) * x).div_((1 - omega * (1 - b)).to(x.dtype))
            param.copy_(y)
