"""torchtitan (experimental: its trainer changes from release to release).

The container is tested against torchtitan 0.3.0. The trainer's part is written after reading that release,
and has not run: it needs a GPU.

    optimizer = container().Config(
        param_groups=[
            ParamGroupConfig(pattern=".*", optimizer_name="AdamCScheduleFreePlus", optimizer_kwargs={})
        ],
        implementation="for-loop",
    )

and in the trainer's configuration a constant learning rate, and a ``max_norm`` that no gradient reaches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from sfplus_kernels import optim
from sfplus_kernels.core.losses import LossReports
from sfplus_kernels.integrations.follow import follow
from sfplus_kernels.optim import SharedStep, add_loss


@functools.cache
def container() -> type:
    """``OptimizersContainer`` that knows the optimizers of this package by their names.

    All ScheduleFree+ in it share one step size; ``add_loss(container, part)`` tells it the loss. Each model
    part is followed: y in training, x in validation and in checkpoints.
    """
    from torchtitan.components.optimizer import OptimizersContainer

    class ScheduleFreeOptimizersContainer(OptimizersContainer):  # type: ignore[valid-type, misc]
        @dataclasses.dataclass(kw_only=True, slots=True)
        class Config(OptimizersContainer.Config):  # type: ignore[misc]  # it builds the class that it is in
            pass

        needs_loss = True

        def __init__(self, config: Any, *, model_parts: list[torch.nn.Module]) -> None:
            self.loss_reports = LossReports()
            self._shared_step = SharedStep()
            super().__init__(config, model_parts=model_parts)
            for model in model_parts:
                own = {id(p) for p in model.parameters()}
                for optimizer in self.optimizers:
                    params = {id(p) for group in optimizer.param_groups for p in group["params"]}
                    if hasattr(optimizer, "averaged") and params & own:
                        follow(model, optimizer)

        def _resolve_optimizer_factory(self, name: str) -> Callable[..., Any]:
            ours = getattr(optim, name, None) if name in optim.__all__ else None
            if ours is None:
                return super()._resolve_optimizer_factory(name)  # type: ignore[no-any-return]
            if ours.needs_loss:
                return functools.partial(ours, shared_step=self._shared_step)
            return ours  # type: ignore[no-any-return]

        def step(self, closure: None = None) -> None:
            assert closure is None, "OptimizersContainer does not support closures"
            loss = self.loss_reports.take()
            for optimizer in self.optimizers:
                if getattr(optimizer, "needs_loss", False):
                    optimizer.step(loss=loss)
                else:
                    optimizer.step()

    return ScheduleFreeOptimizersContainer


class ScheduleFreeTrainerMixin:
    """In front of torchtitan's ``Trainer``: tells the container the losses. Read, not run.

    Raises:
        NotImplementedError: pipeline parallelism, where only the last stage has a loss.
    """

    def forward_backward_step(self: Any, **kwargs: Any) -> Any:
        """Of the base, whose loss is this rank's sum over the number of all tokens."""
        if self.parallel_dims.pp_enabled:
            raise NotImplementedError(
                "ScheduleFreeTrainerMixin does not cover pipeline parallelism; call add_loss yourself, as "
                "docs/large-jobs.md has it for pipelines"
            )
        loss = super().forward_backward_step(**kwargs)  # type: ignore[misc]
        mesh = self.parallel_dims.get_optional_mesh("loss")
        # the optimizer takes the mean over all ranks, which with this factor is the sum over the loss mesh
        add_loss(self.optimizers, loss.detach() * (1 if mesh is None else mesh.size()))
        return loss
