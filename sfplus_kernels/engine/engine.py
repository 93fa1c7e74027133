"""One step as passes over memory: ``reduce``, ``finalize``, ``update``.

``Engine`` holds what one optimizer needs beside its per-tensor state: the fp64 run state and the chosen
backend. It gives each pass a range in the profiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfplus_kernels.backends.registry import requested, select
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.capture import HostStock, capturing, check_recordable
from sfplus_kernels.contract.layout import (
    Global,
    Group,
    Hyper,
    Move,
    Scalar,
    Setting,
    TensorCoef,
)
from sfplus_kernels.contract.streams import StreamUse
from sfplus_kernels.engine.profiling import profiled
from sfplus_kernels.processes.collective import Buffers, Collective
from sfplus_kernels.processes.sharding import plain
from sfplus_kernels.state.checks import scalar

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Of a loss that a kernel reads."""


class Scaling(NamedTuple):
    """What was done to this step's gradients, beside what the optimizer does itself."""

    grad_scale: float | Tensor | None = None  # they are so many times the true ones
    found_inf: float | Tensor | None = None  # not 0: one of them is not finite, skip the step
    clip_coef: float | Tensor | None = None  # by which they were clipped


class Passes(NamedTuple):
    """The passes over memory of one step."""

    sums: bool  # whether it begins with ``reduce``
    with_e: bool  # whether that also forms sum g e
    collective: Collective | None  # with whom the sums are added up, if not with oneself
    has_gradient: bool  # whether there is any in this process, or the step counts without


def check_backend(name: str | None) -> None:
    """Raise ValueError if this, or else ``SFPLUS_BACKEND``, is not the name of a backend."""
    requested(name)


class Engine:
    """Run state and backend of one optimizer on one device.

    Args:
        backend: name of a backend, or None for the best one.
        device: where all parameters are.
        sizes: number of parameters of each group.
        betas: with which y of each group was written, or None where nothing was written so far.
    """

    def __init__(
        self,
        backend: str | None,
        device: torch.device,
        sizes: Sequence[int],
        betas: Sequence[float] | None,
    ) -> None:
        self.backend_name, self._backend, self.passed_over = select(backend, device)
        self.device = device
        self.run = RunState.zeros(len(sizes), sum(sizes), device)
        groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        self._members = groups.to(device)  # the group of each parameter
        self._use = StreamUse(device, [*vars(self.run).values(), self._members])
        self._figures = list(self.run.globals)
        # gamma of each group as of the last step: waited for only when one of them is read
        self.scheduled_lr = list(self.run.groups[:, Group.SCHEDULED_LR])
        self._hyper: list[tuple[float, ...]] | None = None
        self._betas = betas
        self.moves_beta = (
            False  # whether beta of y may be another one in the next step than in the last
        )
        self._settings: tuple[float, ...] | None = None
        self._buffers: Buffers | None = None
        self._unusual: set[Global] = set()  # figures that were written for one step only
        self._loss: Tensor | None = None  # of this step, on the device, not yet in the run state
        # what CUDA graphs read: the plans of recorded steps, and the hyperparameters that they send again
        self._recorded: list[object] = []
        pin = device.type == "cuda"
        self._host_hyper = HostStock(self.run.hyper.shape, torch.float64, pin)
        self._host_settings = HostStock(self.run.settings.shape, torch.float64, pin)

    def figures(self) -> Tensor:
        """A copy of the run state: those of ``Global``, then a row of ``Group`` for each group."""
        return torch.cat([self.run.globals, self.run.groups.flatten()])

    def set_hyperparameters(
        self,
        hyper: Sequence[Sequence[float]],
        settings: Sequence[float],
        lr_tensors: Sequence[tuple[int, Tensor]],
    ) -> list[tuple[float, ...]] | None:
        """Rows as in ``layout.Hyper`` and ``layout.Setting``; sent only when they changed.

        A CUDA graph sends those of its capture at every replay; once there is one, so does every step.
        ``lr_tensors`` are (group, learning rate) for those that live on the device: copied there.

        Returns:
            The rows of ``hyper`` at the last step, if they were others.
        """
        rows = [tuple(row) for row in hyper]
        before = None if rows == self._hyper else self._hyper
        betas = [row[Hyper.SF_BETA1] for row in rows]
        annealed = settings[Setting.SF_BETA1_ANNEAL_STEPS] > 0
        self.moves_beta = self.moves_beta or annealed or betas != (self._betas or betas)
        self._betas = betas
        always = bool(self._recorded) or capturing(self.device)
        if always or rows != self._hyper:
            self._write(self.run.hyper, rows, self._host_hyper)
            self._hyper = rows
        if always or tuple(settings) != self._settings:
            self._write(self.run.settings, settings, self._host_settings)
            self._settings = tuple(settings)
        for group, lr in lr_tensors:
            self.run.hyper[group, Hyper.LR].copy_(lr)
        return before

    @property
    def recorded(self) -> bool:
        """Whether a pass was captured into a CUDA graph, which reads the memory of this engine."""
        return bool(self._recorded)

    def plan(self, entries: Sequence[Entry], *, watched: bool = False) -> object:
        """The backend's plan for ``entries``, to be kept while their addresses stay."""
        return self._backend.plan(entries, self.device, watched=watched)

    def drift(self, plan: object) -> Tensor:
        """Sums of the last step over each tensor of a ``watched`` plan, (n_entries, len(Drift))."""
        return self._backend.drift(plan)

    def set_gradients(self, plan: object, gradients: Sequence[Tensor], *, moved: bool) -> None:
        """Bring this step's gradients to ``plan``; ``moved`` if they are elsewhere than at the last."""
        self._backend.set_gradients(plan, gradients, moved=moved)

    def hand_in(
        self, loss: float | Tensor | None, scaling: Scaling, *, read_later: bool = False
    ) -> None:
        """Write what the step has to know beside the gradients: the loss, if the algorithm needs it.

        Args:
            read_later: ``run_passes`` comes next, in one process: a kernel of its may read the loss where
                it is.
        """
        self._use.note()
        self._loss = None
        readable = isinstance(loss, Tensor) and loss.device == self.device and loss.dtype in FLOATS
        if read_later and readable:
            assert isinstance(loss, Tensor)
            self._loss = scalar(plain(loss))
        elif loss is not None:
            self._write_figure(Global.FUNCTION_VALUE, loss)
        for index, value, usual in (
            (Global.GRAD_SCALE, scaling.grad_scale, 1.0),
            (Global.CLIP_COEF, scaling.clip_coef, 1.0),
            (Global.FOUND_INF, scaling.found_inf, 0.0),
        ):
            if value is not None:
                value = plain(value)
                check_recordable(index.name.lower(), value, self.device)
                self._write_figure(index, value)
                self._unusual.add(index)
            elif index in self._unusual:
                self._write_figure(index, usual)
                self._unusual.remove(index)

    def reduce(self, plan: object, *, with_e: bool) -> Tensor:
        """Partial sums over the gradients that ``plan`` was told of, (n, len(Sum)); see the contract.

        Args:
            with_e: form sum g e too, for a Polyak step.
        """
        self._keep_if_recorded(plan)
        with profiled("reduce"):
            return self._backend.reduce(plan, with_e=with_e)

    def share(
        self, collective: Collective, partials: Tensor, figures: Tensor, has_gradient: bool
    ) -> Tensor:
        """The sums over all processes, (1, len(Sum)); in ``figures`` the loss becomes that of all.

        Args:
            figures: ``RunState.globals``, with the loss that was handed in.
        """
        if self._buffers is None:
            self._buffers = Buffers(collective, self.device)
        self._unusual.add(Global.FOUND_INF)
        seed = 0.0 if self._settings is None else self._settings[Setting.ROUNDING_SEED]
        with profiled("all_reduce"):
            return collective.all_reduce(partials, figures, has_gradient, seed, self._buffers)

    def adopt(self, figures: Tensor) -> None:
        """Take over what ``share`` of another engine made of the loss, and whether all skip the step.

        Args:
            figures: ``RunState.globals`` of that engine.
        """
        self._unusual.add(Global.FOUND_INF)
        for index in (Global.FUNCTION_VALUE, Global.FOUND_INF):
            self.run.globals[index].copy_(figures[index], non_blocking=True)

    def finish(self, plan: object, run: RunState, partials: Tensor | None) -> None:
        """Finalize and update, without waiting for the device.

        Args:
            plan: made from the tensors that have a gradient, and told where these are.
            run: ``self.run``, or a copy of it that belongs to the tensors of the plan.
            partials: from ``reduce``, or None if the step has no sums.
        """
        self._keep_if_recorded(plan)
        with profiled("finalize"):
            self._backend.finalize(plan, run, partials)
        with profiled("update"):
            self._backend.update(plan, run)

    def run_passes(self, plan: object, run: RunState, passes: Passes) -> None:
        """The passes of one step: ``reduce``, ``share`` and ``finish``, as far as it needs them."""
        partials, loss, self._loss = None, self._loss, None
        if passes.collective is None and self._backend.steps_at_once(plan):
            self._keep_if_recorded(plan)
            with profiled("step"):
                self._backend.step(plan, run, sums=passes.sums, with_e=passes.with_e, loss=loss)
            return
        if loss is not None:
            self._write_figure(Global.FUNCTION_VALUE, loss)
        if passes.sums:
            partials = self.reduce(plan, with_e=passes.with_e)
            if passes.collective is not None:
                partials = self.share(passes.collective, partials, run.globals, passes.has_gradient)
        self.finish(plan, run, partials)

    def _write_figure(self, index: Global, value: float | Tensor) -> None:
        slot = self._figures[index]
        on_host = isinstance(value, Tensor) and value.device.type == "cpu"
        if isinstance(value, Tensor) and not (on_host and self.device.type != "cpu"):
            slot.copy_(scalar(value))
        else:
            slot.fill_(float(value))

    def interpolate(self, plan: object, move: Move) -> None:
        """Move the parameters of ``plan`` between y, x and z."""
        self._use.note()
        self._keep_if_recorded(plan)
        with profiled("interpolate"):
            self._backend.interpolate(plan, self.run, move)

    def shift(self, plan: object, betas: Tensor) -> None:
        """y of the tensors of ``plan`` from b to the ``betas``, float64, one for each group.

        ``plan`` has all tensors whose b is another one.
        """
        b, new = self.run.tensors[:, Scalar.Y_BETA], betas[self._members]
        torch.sub(b, new, out=self.run.tensor_coefs[:, TensorCoef.E_TO_Y])
        b.copy_(new)
        self.run.groups[:, Group.Y_BETA] = betas
        self.interpolate(plan, Move.SHIFT)

    def shift_to_group(self, plan: object) -> None:
        """y of the tensors of ``plan``, which had no gradient in this step, to their groups' present beta."""
        self.shift(plan, self.run.groups[:, Group.Y_BETA].clone())

    def absorb_z(self, plan: object) -> None:
        """After another optimizer's step on z: x follows it, and y and e are formed again."""
        self._backend.finalize(plan, self.run, None)
        self.interpolate(plan, Move.ABSORB_Z)

    def put_back(self, plan: object) -> None:
        """As ``absorb_z``, but x stays and nothing counts."""
        self.run.globals[Global.SKIP] = 1
        self.interpolate(plan, Move.ABSORB_Z)

    def _keep_if_recorded(self, plan: object) -> None:
        if capturing(self.device) and not any(plan is kept for kept in self._recorded):
            self._recorded.append(plan)

    def _write(self, buffer: Tensor, values: Iterable, stock: HostStock) -> None:
        host = torch.tensor(values, dtype=torch.float64)
        if capturing(self.device):
            host = stock.give(host)
        elif self.device.type == "cuda":
            host = host.pin_memory()
            stock.refill()
        buffer.copy_(host, non_blocking=True)
