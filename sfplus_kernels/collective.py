"""One sum over all processes: what a step needs to know of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sfplus_kernels.backends.layout import Global, Sum

LOSS_REDUCTIONS = ("mean", "sum", None)


@dataclass(frozen=True)
class Collective:
    """Over whom the sums and the loss of a step are added up.

    Every element of the model must count once: a process puts in its sums divided by the number of
    processes that hold the same elements.

    Args:
        process_group: all processes that train this model; None is the default group.
        shard_group: the processes among which the elements are divided; None where each process holds
            all of them, as under DDP.
        loss_reduce: "mean" or "sum" of the processes' losses, or None where they are the same already.
    """

    process_group: Any = None
    shard_group: Any = None
    loss_reduce: str | None = "mean"

    def __post_init__(self) -> None:
        if self.loss_reduce not in LOSS_REDUCTIONS:
            raise ValueError(
                f"loss_reduce is {self.loss_reduce!r}; expected one of {LOSS_REDUCTIONS}"
            )

    @property
    def active(self) -> bool:
        """Whether there is any other process."""
        if not (dist.is_available() and dist.is_initialized()):
            return False
        return bool(dist.get_world_size(self.process_group) > 1)

    def all_reduce(self, partials: Tensor, figures: Tensor, has_gradient: bool) -> Tensor:
        """The sums over all processes, (1, len(Sum)); ``figures`` (RunState.globals) get the loss.

        One ``all_reduce`` of six float64 numbers, which every process must join, also one that holds
        nothing. No process waits for its device. If one of them found an Inf, or none has a gradient,
        all skip the step.
        """
        world = dist.get_world_size(self.process_group)
        shards = 1 if self.shard_group is None else dist.get_world_size(self.shard_group)
        packed = torch.empty(len(Sum) + 3, dtype=torch.float64, device=partials.device)
        torch.sum(partials, 0, out=packed[: len(Sum)])
        packed[: len(Sum)] *= shards / world
        loss, found_inf, with_gradient = packed[len(Sum) :]
        loss.copy_(figures[Global.FUNCTION_VALUE])
        if self.loss_reduce == "mean":
            loss /= world
        found_inf.copy_(figures[Global.FOUND_INF])
        with_gradient.fill_(float(has_gradient))
        dist.all_reduce(packed, group=self.process_group)
        if self.loss_reduce is not None:
            figures[Global.FUNCTION_VALUE].copy_(loss)
        figures[Global.FOUND_INF].copy_(torch.where(with_gradient > 0, found_inf, 1))
        return packed[: len(Sum)].unsqueeze(0)
