"""Schedule-Free averaging around any ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.core.averaging import Averaging
from sfplus_kernels.core.hyperparameters import check_closure
from sfplus_kernels.core.modes import ScheduleFreeOptimizer
from sfplus_kernels.core.torch_habits import TorchHabits
from sfplus_kernels.state.iterates import Iterates


class ScheduleFreeWrapper(TorchHabits, torch.optim.Optimizer):
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
        state_format: "float32"; the other classes have another, too.
        backend: "cpu", "cuda", "triton" or "eager"; None takes ``SFPLUS_BACKEND`` or the best available.

    Raises:
        TypeError, ValueError: no optimizer, or one that averages already; a hyperparameter out of range;
            unusable parameters.
        RuntimeError: the named backend is unavailable; the message says why.

    ``state`` is the base's, and what its class refuses in it is refused here too: ``torch.optim.Adam`` and
    ``AdamW`` load, copy and pickle no ``state[p]`` that has keys of others and no ``step`` (KeyError).
    If the base's step raises, the parameters are put back (to rounding).
    """

    needs_loss = False

    def __init__(
        self,
        base: torch.optim.Optimizer,
        weight_decay_at_y: float = 0.0,
        momentum: float = 0.9,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
        *,
        state_format: str = "float32",
        backend: str | None = None,
    ) -> None:
        if state_format != "float32":
            raise ValueError(
                f"state_format is {state_format!r}, but ScheduleFreeWrapper keeps x in the displacement's "
                "memory while the base steps, which 16 bits cannot hold; expected 'float32'"
            )
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

    @property
    def backend(self) -> str:
        """Name of the backend that averages, where the parameters are now."""
        return self._averaging.backend

    def __repr__(self) -> str:
        averaging = repr(self._averaging).removeprefix(type(self._averaging).__name__)
        return f"{type(self).__name__} around {type(self.base).__name__}{averaging}"

    # -- modes --------------------------------------------------------------------------------------

    @property
    def _averages(self) -> Averaging:
        """The averages, with the groups that the base has now."""
        self._averaging.follow_groups(self.param_groups)
        return self._averaging

    def train(self, mode: bool = True) -> None:
        """Put y into the parameters, where gradients are taken. Costs nothing in train mode.

        Args:
            mode: False is ``eval()``, as in ``torch.nn.Module.train``.
        """
        self._averages.train(mode)

    def eval(self) -> None:
        """Put x, the average, into the parameters: evaluate and save it. Costs nothing in eval mode."""
        self._averages.eval()

    def averaged(self) -> AbstractContextManager[None]:
        """As ``AdamWScheduleFree.averaged``: x in the parameters, and y back, bit for bit."""
        return self._averages.averaged()

    def averaged_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """``model.state_dict()`` with x in place of the parameters, all of it copies: what to ship.

        Raises:
            ValueError: trainable parameters of ``model`` are not this optimizer's; their x is not known.
            RuntimeError: while the base steps, as in one of its hooks: the parameters hold z then.
        """
        return self._averages.averaged_state_dict(model)

    def iterates(self, param: Tensor) -> Iterates:
        """x, y and z of one parameter; three copies of it before its first step.

        Raises:
            ValueError: ``param`` is not a parameter of this optimizer.
            RuntimeError: while the base steps.
        """
        return self._averages.iterates(param)

    def metrics(self, *, wait: bool = True) -> dict[str, float | list[float]]:
        """Figures of the averaging; ``wait`` as in ``AdamWScheduleFree.metrics``."""
        return self._averages.metrics(wait=wait)

    def monitor_drift(self, per: str | None = "group") -> None:
        """Raises RuntimeError: the gradients are read by the optimizer within."""
        self._averages.monitor_drift(per)

    # -- the step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float | Tensor] | None = None,
        *,
        loss: float | Tensor | None = None,
        clip_coef: float | Tensor | None = None,
    ) -> float | Tensor | None:
        """One step of the base at the gradients in ``param.grad``, and of the averages.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()``, returns the loss.
            loss, clip_coef: not needed here; taken, so that one loop serves all classes.

        Returns:
            What the closure returned, else ``loss``.

        Raises:
            RuntimeError: in eval mode, also if the closure changes to it, except when every ``lr`` is 0:
                then state is allocated and nothing else happens (checkpoint loaders do that).
            TypeError, ValueError: unusable gradients or hyperparameters. Nothing has changed then.
        """
        averaging = self._averages
        if closure is None and averaging.only_makes_state(self.param_groups):
            self.base.step()  # makes its state, and moves nothing
            averaging.make_state()
            return None
        averaging.check_may_step()
        check_closure(closure)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            averaging.check_may_step()
        averaging.follow_lr(self.param_groups)
        with averaging.z_in_parameters():
            self.base.step()
            averaging.follow_lr(self.param_groups)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; its average starts with it.

        Raises:
            TypeError, ValueError: what the base refuses, or the other classes of this package in a group
                (dtypes, devices); the group is in neither of the two then.
        """
        averaging = self._averages
        self.base.add_param_group(param_group)
        try:
            averaging.add_param_group({"params": list(param_group["params"])})
        except Exception:
            self.param_groups.pop()
            raise

    # -- checkpoints --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base's, with the averages' state beside each parameter's and in ``"averaging"`` of a group.

        Raises:
            RuntimeError: while the base steps.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        merged = self._averages.merged_state_dict(self.base.state_dict())
        for other in self._optimizer_state_dict_post_hooks.values():
            merged = other(self, merged) or merged
        return merged

    def to_upstream_state_dict(self) -> dict[str, Any]:
        """A state dict for upstream's ``ScheduleFreeWrapper`` around the same base.

        Save the parameters with it, and note the mode, which upstream does not save.

        Raises:
            RuntimeError: while the base steps.
        """
        return self._averages.merged_upstream_state_dict(self.base.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from ``state_dict()``, or from that of upstream's ``ScheduleFreeWrapper``.

        Upstream does not save the mode: call ``train()`` or ``eval()`` first, whichever it was saved in.

        Raises:
            ValueError: the state of something else, or of other groups or shapes.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        averaging = self._averages
        base = averaging.load_own_part(state_dict, self.base.defaults)
        for group, own in zip(base["param_groups"], self.param_groups, strict=True):
            if "param_names" not in own:  # torch wants them in all groups or in none
                group.pop("param_names", None)
        self.base.load_state_dict(base)
        averaging.forget_base()  # whose groups are new ones
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "_averaging": self._averages, "defaults": self.defaults}
