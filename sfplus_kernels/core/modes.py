"""Train and eval mode: whether the parameters hold y or x, and the averages to take away."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.contract.formats import OF_Y
from sfplus_kernels.contract.layout import Hyper, Move
from sfplus_kernels.core.fused import FusedOptimizer
from sfplus_kernels.core.other_formats import state_dict_in
from sfplus_kernels.core.pairs import LoadedPair, probe, witness
from sfplus_kernels.core.warnings_once import warn_once
from sfplus_kernels.core.wrappers import of_the_inner
from sfplus_kernels.processes.sharding import local
from sfplus_kernels.state.checks import is_fake
from sfplus_kernels.state.containers import has_own
from sfplus_kernels.state.conversion import park
from sfplus_kernels.state.iterates import Iterates, iterates


class ScheduleFreeOptimizer(FusedOptimizer):
    """Base of the Schedule-Free optimizers in displacement form (y in the parameter, e = z - x)."""

    has_modes = True
    _loaded: LoadedPair | None = None  # until its verdict
    _mode_of_loaded = "train"

    @untraced
    @torch.no_grad()
    @of_the_inner
    def state_dict(self) -> dict[str, Any]:
        """As in the base class, with a few elements of a parameter, by which ``load`` knows the mode."""
        result = super().state_dict()
        # of a parameter that was cut since its last step nothing can be said
        whole = [
            p
            for p in (self._parameters_with_state() if self.has_modes else [])
            if self.state[p]["displacement"].shape == p.shape
        ]
        place = witness(whole)
        if place is not None:
            found = self.iterates(whole[place])
            x, y = (value.to(whole[place].dtype) for value in found[:2])
            held, otherwise = (y, x) if result["param_groups"][0]["train_mode"] else (x, y)
            place = next(i for i, p in enumerate(self._parameters()) if p is whole[place])
            result["param_groups"][0]["probe"] = probe(place, held, otherwise)
        return result

    @untraced
    @torch.no_grad()
    @of_the_inner
    def state_dict_in(self, state_format: str) -> dict[str, Any]:
        """A copy of ``state_dict()`` in another format: to save for others, or as the template that a loader
        such as torch.distributed.checkpoint fills with what was saved in that format. ``load_state_dict``
        takes any.

        It goes with the parameters as they are, and "float32" holds all that any other format does. In eval
        mode a smaller one moves x by the rounding of e; where a bfloat16 x is another number then, y is read
        from the parameter, to half a last place.

        Raises:
            ValueError: an unknown format, or one that this optimizer could not have.
        """
        return state_dict_in(self, state_format)

    def _note_what_was_loaded(self) -> None:
        """Before the parameters are used or moved for the first time after ``load_state_dict``."""
        saved = self.param_groups[0].get("probe")
        if saved:
            self.param_groups[0]["probe"] = ()
            params = self._parameters()
            if int(saved[0]) < len(params) and witness([params[int(saved[0])]]) is not None:
                self._loaded, self._just_loaded = LoadedPair(saved, params), True
                self._mode_of_loaded = "train" if self.param_groups[0]["train_mode"] else "eval"

    def _look_at(self, figures: list[float]) -> None:
        super()._look_at(figures)
        if self._loaded is not None:
            loaded, self._loaded, self._just_loaded = self._loaded, None, False
            if loaded.of_the_other_mode():
                warn_once(self, "other-mode", mode=self._mode_of_loaded)

    @untraced
    @torch.no_grad()
    @of_the_inner
    def train(self, mode: bool = True) -> None:
        """Put y into the parameters, where gradients are taken. Costs nothing in train mode.

        Args:
            mode: False is ``eval()``, as in ``torch.nn.Module.train``.
        """
        self._set_mode(train=mode)

    @untraced
    @torch.no_grad()
    @of_the_inner
    def eval(self) -> None:
        """Put x, the average, into the parameters: evaluate and save it. Costs nothing in eval mode.

        The model has a mode of its own: call ``model.eval()`` too, for dropout and BatchNorm. Weights that
        are loaded into the model in train mode count as y, which this moves: load averaged weights (as of
        ``averaged_state_dict``) after ``eval()``, or into another model.
        """
        self._set_mode(train=False)

    def _set_mode(self, *, train: bool) -> None:
        self._follow_groups()
        if self.param_groups[0]["train_mode"] == train:
            return
        self._note_what_was_loaded()
        params = self._parameters_with_state()
        if params and not is_fake(params[0]):
            for param in params:
                park(param, self.state[param])
            runtime = self._get_runtime()
            plan = runtime.move_plan(self._containers(), params, "modes")
            runtime.engine.interpolate(plan, Move.TO_Y if train else Move.TO_X)
            torch.autograd.graph.increment_version(params)
            if train:
                for param in params:
                    self.state[param].pop("y_high", None)
        for group in self.param_groups:
            group["train_mode"] = train

    @of_the_inner
    @contextmanager
    def averaged(self) -> Iterator[None]:
        """``with optimizer.averaged():`` x is in the parameters, and after it y is, bit for bit.

        In eval mode the parameters hold x already and nothing is done.
        """
        if not self.param_groups[0]["train_mode"]:
            yield
            return
        # eval() then train() would round twice, where y is the parameter alone
        params = [
            local(p)
            for p in self._parameters()
            if not set(OF_Y).intersection(self.state.get(p, {}))
        ]
        saved = [p.detach().clone() for p in params]
        self.eval()
        try:
            yield
        finally:
            self.train()
            with torch.no_grad():
                for param, y in zip(params, saved, strict=True):
                    param.detach().copy_(y)

    @untraced
    @torch.no_grad()
    @of_the_inner
    def averaged_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """``model.state_dict()`` with x in place of the parameters: what to ship.

        Everything in it is a copy; the model and this optimizer stay as they are. Buffers (BatchNorm's
        statistics) are those of the model, in train mode those of y. Names are those of the model that is
        handed in: of ``torch.compile(model)`` and DDP they have a prefix. To go on training later save
        ``model.state_dict()`` and ``state_dict()`` in one mode instead: x is not where gradients are taken.

        Raises:
            ValueError: trainable parameters of ``model`` are not this optimizer's; their x is not known.
        """
        own = {id(p) for p in self._parameters()}
        foreign = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]
        if foreign:
            raise ValueError(
                f"trainable parameters of the model are not this optimizer's: {', '.join(foreign)}; expected "
                "the model that is trained, not a copy of it. Freeze what is not trained with "
                "requires_grad_(False)"
            )
        copies: dict[int, Any] = {}  # so that tied parameters stay one tensor
        result = model.state_dict(keep_vars=True)
        train_mode = self.param_groups[0]["train_mode"]  # a model that follows us is now at x
        for name, value in result.items():
            if id(value) not in copies:
                if id(value) in own and train_mode:
                    copies[id(value)] = self.iterates(value).x.to(value.dtype)
                else:
                    copies[id(value)] = copy.deepcopy(
                        value.detach() if isinstance(value, Tensor) else value
                    )
            result[name] = copies[id(value)]
        return result

    @untraced
    @torch.no_grad()
    @of_the_inner
    def iterates(self, param: Tensor) -> Iterates:
        """x, y and z of one parameter; three copies of it before its first step.

        Raises:
            ValueError: ``param`` is not a parameter of this optimizer.
        """
        if not any(param is p for p in self._parameters()):
            raise ValueError(
                f"a tensor of shape {tuple(param.shape)} that is not a parameter of this optimizer; "
                "expected one of those in param_groups"
            )
        self._settle()
        state = self.state.get(param)
        if not has_own(state):
            return iterates(param, None, 0.0, True)
        return iterates(param, state, self._b_of(param), self.param_groups[0]["train_mode"])

    def _parameters_with_state(self) -> list[Tensor]:
        self._settle()
        return [p for p in self._parameters() if has_own(self.state.get(p))]

    def _b_of(self, param: Tensor) -> float | Tensor:
        """beta with which y of a parameter was written."""
        if self._runtime is not None:
            return self._get_runtime().b_of(self._containers(), param)
        groups = (g for g in self.param_groups if any(param is p for p in g["params"]))
        return float(next(groups)["y_beta"])

    def _look_at_change(
        self, before: Sequence[tuple[float, ...]], now: Sequence[tuple[float, ...]]
    ) -> None:
        for old, new in zip(before, now, strict=False):  # a group may have been added
            if new[Hyper.LR] < old[Hyper.LR]:
                warn_once(self, "scheduler", before=old[Hyper.LR], now=new[Hyper.LR])

    def check_may_step(self) -> None:
        """Raise RuntimeError in eval mode."""
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError(
                "step() was called in eval mode, where the parameters hold x; gradients belong to y: "
                "call optimizer.train() before the forward pass (and optimizer.eval() to evaluate)"
            )
        self._note_what_was_loaded()
