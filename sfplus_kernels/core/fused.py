"""What all Schedule-Free optimizers share: modes, averages, the step. No mathematics here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.compiling.tracing import untraced
from sfplus_kernels.contract.layout import Global
from sfplus_kernels.core.shared_step import SharedStep
from sfplus_kernels.core.stateful import StatefulOptimizer
from sfplus_kernels.engine import engine as ops
from sfplus_kernels.engine.delayed_figures import DelayedFigures
from sfplus_kernels.engine.engine import Move, Passes, Scaling, check_recordable
from sfplus_kernels.engine.plans import ReadyStep
from sfplus_kernels.processes.sharding import local, local_gradients
from sfplus_kernels.state import run as run_state
from sfplus_kernels.state.tensors import Iterates, iterates


class ScheduleFreeOptimizer(StatefulOptimizer):
    """Base of the Schedule-Free optimizers in displacement form (y in the parameter, e = z - x)."""

    # For the time of a step torch.amp.GradScaler sets grad_scale and found_inf on the optimizer, and leaves
    # the gradients as they are: update takes the scale out, finalize skips the step if an Inf was found.
    _step_supports_amp_scaling = True

    _shared_step: SharedStep | None = None
    # Where a list is put here, a step leaves its passes and gradients in it: see operators.py.
    _held_back: list[tuple[Passes, list[Tensor]]] | None = None

    # -- modes --------------------------------------------------------------------------------------

    @untraced
    @torch.no_grad()
    def train(self) -> None:
        """Put y into the parameters, where gradients are taken. Costs nothing in train mode."""
        self._set_mode(train=True)

    @untraced
    @torch.no_grad()
    def eval(self) -> None:
        """Put x, the average, into the parameters: evaluate and save it. Costs nothing in eval mode."""
        self._set_mode(train=False)

    def _set_mode(self, *, train: bool) -> None:
        if self.param_groups[0]["train_mode"] == train:
            return
        params = self._parameters_with_state()
        if params:
            plan = self._valid_move_plan(params)
            self._get_engine().interpolate(plan, Move.TO_Y if train else Move.TO_X)
            torch.autograd.graph.increment_version(params)
        for group in self.param_groups:
            group["train_mode"] = train

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """``with optimizer.averaged():`` x is in the parameters, and after it y is, bit for bit.

        In eval mode the parameters hold x already and nothing is done.
        """
        if not self.param_groups[0]["train_mode"]:
            yield
            return
        # eval() then train() would round twice; a master_param is exact and needs no copy
        params = [
            local(p) for p in self._parameters() if "master_param" not in self.state.get(p, {})
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
    def averaged_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """``model.state_dict()`` with x in place of the parameters: what to ship.

        Everything in it is a copy; the model and this optimizer stay as they are. Buffers (BatchNorm's
        statistics) are those of the model, in train mode those of y.
        """
        train_mode = self.param_groups[0]["train_mode"]
        own = {id(p) for p in self._parameters()}
        copies: dict[int, Any] = {}  # so that tied parameters stay one tensor
        result = model.state_dict(keep_vars=True)
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
        return iterates(param, self.state.get(param), self.param_groups[0]["train_mode"])

    # -- the step -----------------------------------------------------------------------------------

    def _check_train_mode(self) -> None:
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError(
                "step() was called in eval mode, where the parameters hold x; gradients belong to y: "
                "call optimizer.train() before the forward pass (and optimizer.eval() to evaluate)"
            )

    def _run_step(
        self,
        loss: float | Tensor | None = None,
        *,
        check_finite: bool = False,
        clip_coef: float | Tensor | None = None,
    ) -> None:
        """Check everything, then one step; raises before anything changed."""
        hyper, settings = self._check_groups()
        has_sums = loss is not None or check_finite
        # every process must take part in the sum, also one that has nothing to add
        collective = self._collective if has_sums and self._collective.active else None
        params, shared = self._parameters(), self._shared_step
        self._no_gradients = (
            all(p.grad is None for p in params) if shared is None else not shared.any_gradient()
        )
        if self._no_gradients and not self.advances_without_gradients and collective is None:
            return
        check_recordable("the loss", loss, params[0].device)
        ready = self._ready_step()
        if has_sums:
            self._collective.check_shards(ready.shards)
        engine = self._get_engine()
        engine.set_hyperparameters(hyper, settings, self._lr_tensors())
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        engine.hand_in(loss, Scaling(scale, found_inf, clip_coef))
        counts = self.advances_without_gradients or not self._no_gradients
        passes = Passes(has_sums, loss is not None, collective, counts)
        if self._held_back is not None:
            self._held_back.append((passes, ready.gradients))
        elif shared is not None:
            engine.finish(ready.plan, engine.run, shared.sums(self, ready, collective))
        else:
            engine.run_passes(ready.plan, engine.run, passes)
        self._send_figures()
        # The kernels write through addresses: without this, a backward() through a tensor that was
        # saved before the step would use the new values and be wrong without a word.
        torch.autograd.graph.increment_version(ready.params)

    def _send_figures(self) -> None:
        """To the host, where somebody asked for them without waiting."""
        if self._delayed is not None and self._held_back is None:
            self._delayed.send()

    def _ready_step(self) -> ReadyStep:
        """Everything checked and prepared for the passes over this step's gradients."""
        params = self._parameters()
        gradients = local_gradients(params)
        kept = self._valid_plan(params, gradients)
        present = [g for g in gradients if g is not None]
        engine = self._get_engine()
        kept.bring_gradients(engine, present, recording=ops.capturing(engine.device))
        active = [p for p, g in zip(params, gradients, strict=True) if g is not None]
        return ReadyStep(kept.plan, kept.shards, active, present)

    def _lr_tensors(self) -> list[tuple[int, Tensor]]:
        """(group, lr) of the learning rates that live on a device other than the host."""
        return [
            (index, group["lr"])
            for index, group in enumerate(self.param_groups)
            if isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu"
        ]

    def figures(self) -> tuple[Global, ...]:
        """What ``metrics()`` shows beside the figures of the groups."""
        return tuple(self.global_keys.values())

    @untraced
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
        engine = self._get_engine()
        if wait:
            figures = engine.figures().tolist()
            run_state.into_groups(figures, self.param_groups, self.global_keys)
        else:
            if self._delayed is None:
                self._delayed = DelayedFigures(engine)
                self._delayed.send()
            arrived = self._delayed.newest()
            if arrived is None:
                return {}
            figures = arrived
        values: dict[str, float | list[float]] = {
            index.name.lower(): figures[index] for index in self.figures()
        }
        groups = [run_state.of_group(figures, i) for i in range(len(self.param_groups))]
        for key in run_state.GROUP_KEYS:
            values[key] = [group[key] for group in groups]
        values["k"] = groups[0]["k"]
        values["no_gradients"] = float(self._no_gradients)
        return values
