"""Schedule-Free averaging around any ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.checkpoints import upstream
from sfplus_kernels.compiling import tracing
from sfplus_kernels.core.averaging import Averaging
from sfplus_kernels.core.fused import ScheduleFreeOptimizer
from sfplus_kernels.state.tensors import Iterates

OWN_STATE = ("displacement", "master_param", "averaging_step", "y_beta")
"""Keys that the wrapper adds to each parameter's part of a state dict; the others are the base's."""


class ScheduleFreeWrapper(torch.optim.Optimizer):
    r"""Schedule-Free averaging around any optimizer (arXiv 2405.15682; upstream ``ScheduleFreeWrapper``).

    The base optimizer steps z; x is the average of the z, and gradients are taken at y between the two.
    Momentum in the base is not needed, since beta takes its place. Around the base's own step come two
    passes of 16 bytes per float32 parameter each; 4 bytes of state beside the base's.

    Args:
        base: the optimizer of z. The wrapper shares its ``param_groups``: LR schedulers may be given either
            of the two. Its parameters as for the other classes of this package; bfloat16 and float16
            ones get a float32 ``master_param``, to which each step of the base is added.
        weight_decay_at_y: coefficient of a decay at y, multiplied by the group's ``lr`` (the base's own
            ``weight_decay`` is at z).
        momentum: beta of Schedule-Free, in [0, 1].
        weight_lr_power: power of the largest learning rate so far in the averaging weights, at least 0.
        r: power of the step in the averaging weights.
        backend: "cpu", "cuda", "triton" or "eager"; None takes ``SFPLUS_BACKEND`` or the best available.

    Raises:
        TypeError, ValueError: no optimizer, or one that averages already; a hyperparameter out of range;
            unusable parameters.
        RuntimeError: the named backend is unavailable; the message says why.

    ``state`` is the base's. If the base's step raises, the parameters are put back (to rounding).
    """

    # torch wraps the step of each class with it
    profile_hook_step = staticmethod(tracing.hooked)  # type: ignore[assignment]

    def __init__(
        self,
        base: torch.optim.Optimizer,
        weight_decay_at_y: float = 0.0,
        momentum: float = 0.9,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
        *,
        backend: str | None = None,
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            raise TypeError(
                f"the base is a {type(base).__name__}; expected an optimizer of z, such as "
                "torch.optim.RMSprop(model.parameters(), lr=0.0025)"
            )
        if isinstance(base, ScheduleFreeOptimizer | ScheduleFreeWrapper):
            raise TypeError(
                f"the base is {type(base).__name__}, which averages already; use it as it is"
            )
        self.base = base
        self._averaging = Averaging(
            [{"params": list(group["params"])} for group in base.param_groups],
            weight_decay_at_y,
            momentum,
            weight_lr_power,
            r,
            backend,
        )
        # torch's __init__ would make groups and state of our own; this makes the rest
        super().__setstate__({"defaults": base.defaults})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's."""
        return self.base.param_groups

    @property
    def state(self) -> Mapping[Tensor, Any]:  # type: ignore[override]
        """The base's."""
        return self.base.state

    # -- modes --------------------------------------------------------------------------------------

    def train(self) -> None:
        """Put y into the parameters, where gradients are taken. Costs nothing in train mode."""
        self._averaging.train()

    def eval(self) -> None:
        """Put x, the average, into the parameters: evaluate and save it. Costs nothing in eval mode."""
        self._averaging.eval()

    def averaged(self) -> AbstractContextManager[None]:
        """As ``AdamWScheduleFree.averaged``: x in the parameters, and y back, bit for bit."""
        return self._averaging.averaged()

    def averaged_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """``model.state_dict()`` with x in place of the parameters: what to ship."""
        return self._averaging.averaged_state_dict(model)

    def iterates(self, param: Tensor) -> Iterates:
        """x, y and z of one parameter; three copies of it before its first step."""
        return self._averaging.iterates(param)

    def metrics(self, *, wait: bool = True) -> dict[str, float | list[float]]:
        """Figures of the averaging; ``wait`` as in ``AdamWScheduleFree.metrics``."""
        return self._averaging.metrics(wait=wait)

    # -- the step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float | Tensor] | None = None
    ) -> float | Tensor | None:
        """One step of the base at the gradients in ``param.grad``, and of the averages.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()``, returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: in eval mode, except when every ``lr`` is 0: then state is allocated and nothing
                else happens (checkpoint loaders do that).
            TypeError, ValueError: unusable gradients or hyperparameters. Nothing has changed then.
        """
        averaging = self._averaging
        if closure is None and not averaging.param_groups[0]["train_mode"]:
            averaging.follow_lr(self.param_groups)
            if averaging._all_lr_zero():
                self.base.step()  # makes its state, and moves nothing
                averaging._only_create_state()
                return None
        averaging._check_train_mode()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        averaging.follow_lr(self.param_groups)
        with averaging.z_in_parameters():
            self.base.step()
            averaging.follow_lr(self.param_groups)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; its average starts with it."""
        self.base.add_param_group(param_group)
        try:
            self._averaging.add_param_group({"params": list(param_group["params"])})
        except Exception:
            self.param_groups.pop()
            raise

    # -- checkpoints --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base's, with the averages' state beside each parameter's and in ``"averaging"`` of a group."""
        merged, own = self.base.state_dict(), self._averaging.state_dict()
        state = {index: dict(values) for index, values in merged["state"].items()}
        for index, values in own["state"].items():
            values = dict(values)
            values["averaging_step"] = values.pop("step")
            state.setdefault(index, {}).update(values)
        groups = [
            {**group, "averaging": {k: v for k, v in other.items() if k != "params"}}
            for group, other in zip(merged["param_groups"], own["param_groups"], strict=True)
        ]
        return {**merged, "state": state, "param_groups": groups}

    def to_upstream_state_dict(self) -> dict[str, Any]:
        """A state dict for upstream's ``ScheduleFreeWrapper`` around the same base."""
        own, saved = self._averaging.to_upstream_state_dict(), self.base.state_dict()
        state = {index: dict(values) for index, values in saved["state"].items()}
        for index, values in own["state"].items():
            state.setdefault(index, {}).update(values)
        groups = [
            {**group, **{key: other[key] for key in upstream.RUN_KEYS}}
            for group, other in zip(saved["param_groups"], own["param_groups"], strict=True)
        ]
        return {**saved, "state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()``, or from that of upstream's ``ScheduleFreeWrapper``.

        Upstream does not save the mode: call ``train()`` or ``eval()`` first, whichever it was saved in.

        Raises:
            ValueError: the state of something else, or of other groups or shapes.
        """
        groups = state_dict["param_groups"]
        if all("averaging" in group for group in groups):
            own_groups = [{**g["averaging"], "params": g["params"]} for g in groups]
            own_keys: tuple[str, ...] = OWN_STATE
        elif all(key in group for group in groups for key in upstream.RUN_KEYS):
            keys = ("lr", "params", *upstream.RUN_KEYS)
            mode = {"train_mode": self._averaging.param_groups[0]["train_mode"]}
            own_groups = [{key: group[key] for key in keys} | mode for group in groups]
            own_keys = ("x", "y", "z")
        else:
            raise ValueError(
                "the state dict was not saved by ScheduleFreeWrapper: a group has neither 'averaging' nor "
                f"{', '.join(upstream.RUN_KEYS)}; load it into the class that wrote it"
            )
        own: dict[Any, dict[str, Any]] = {}
        rest: dict[Any, dict[str, Any]] = {}
        for index, values in state_dict["state"].items():
            for key, value in values.items():
                part = own if key in own_keys else rest
                part.setdefault(index, {})[key.removeprefix("averaging_")] = value
        not_the_base = {"averaging", *upstream.RUN_KEYS} - set(self.base.defaults)
        base_groups = [
            {key: value for key, value in group.items() if key not in not_the_base}
            for group in groups
        ]
        self._averaging.load_state_dict({"state": own, "param_groups": own_groups})
        self.base.load_state_dict({**state_dict, "state": rest, "param_groups": base_groups})

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "_averaging": self._averaging, "defaults": self.defaults}
