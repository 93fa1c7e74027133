"""One sum over all processes: what a step needs to know of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sfplus_kernels.contract.capture import capturing
from sfplus_kernels.contract.layout import Global, Sum

AVAILABLE = dist.is_available()
WHOLE = frozenset({1})
"""Each process holds all of each tensor."""

LOSS_REDUCTIONS = ("mean", "sum", None)


@dataclass(frozen=True)
class Collective:
    """Over whom the sums and the loss of a step are added up.

    Every element of the model must count once: a process puts in its sums divided by the number of
    processes that hold the same elements.

    Args:
        process_group: all processes that train this model; None is the default group.
        shard_group: the processes among which plain tensors are divided (and DTensors beyond what they say
            themselves); None where each process holds all of them, as under DDP.
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
    def size(self) -> int:
        """The number of processes that train this model."""
        if not (AVAILABLE and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.process_group)

    @property
    def active(self) -> bool:
        """Whether there is any other process."""
        return self.size > 1

    @property
    def group_shards(self) -> int:
        """Among how many processes the parameters are divided, beside what DTensors say themselves."""
        return 1 if self.shard_group is None else dist.get_world_size(self.shard_group)

    @property
    def rank_of_part(self) -> int:
        """Of this process in ``shard_group``; 0 without one."""
        return 0 if self.shard_group is None else dist.get_rank(self.shard_group)

    def check_shards(self, counts: Iterable[int]) -> None:
        """Raise ValueError if a tensor is divided among processes that do not take part in the sum.

        Args:
            counts: the numbers of shards that there are, as in ``backend.Entry``.
        """
        if self.shard_group is None and counts == WHOLE:
            return
        size, beside = self.size, self.group_shards
        for count in counts:
            if size % (count * beside) != 0:
                raise ValueError(
                    f"a parameter is divided among {count * beside} processes, and process_group has {size}; "
                    "expected a multiple: every element must count once in the sums of the step. Pass "
                    "as process_group all processes that train this model (None is the default group)"
                )

    def all_reduce(
        self, partials: Tensor, figures: Tensor, has_gradient: bool, seed: float, buffers: Buffers
    ) -> Tensor:
        """The sums over all processes, (1, len(Sum)); ``figures`` (RunState.globals) get the loss.

        One ``all_reduce`` of seven float64 numbers, which every process must join, also one that holds
        nothing. No process waits for its device, but for the first sum with a ``seed``. If one of them
        found an Inf, or none has a gradient, all skip the step.

        Raises:
            RuntimeError: another process rounds with another seed.
        """
        packed = buffers.packed
        torch.sum(partials, 0, out=packed[: len(Sum)])
        packed[: len(Sum)] *= self.group_shards / self.size
        loss, found_inf, with_gradient, seeds = packed[len(Sum) :]
        loss.copy_(figures[Global.FUNCTION_VALUE])
        if self.loss_reduce == "mean":
            loss /= self.size
        found_inf.copy_(figures[Global.FOUND_INF])
        with_gradient.fill_(float(has_gradient))
        seeds.fill_(seed)
        if buffers.sent is not packed:
            buffers.sent.copy_(packed)
        dist.all_reduce(buffers.sent, group=self.process_group)
        if seed != buffers.compared_seed and not capturing(buffers.sent.device):
            self._compare(seed, float(buffers.sent[-1]))
            buffers.compared_seed = seed
        if buffers.sent is not packed:
            packed.copy_(buffers.sent)
        if self.loss_reduce is not None:
            figures[Global.FUNCTION_VALUE].copy_(loss)
        figures[Global.FOUND_INF].copy_(torch.where(with_gradient > 0, found_inf, 1))
        return packed[: len(Sum)].unsqueeze(0)

    def total_drift(self, sums: Tensor) -> Tensor:
        """The sums of each parameter over all processes, which all must join; NaN where none has any.

        Args:
            sums: of this process, (n_params, n), times the number of shards; NaN where it has none.
        """
        has = ~sums.isnan()
        packed = torch.stack([torch.where(has, sums, 0), has.to(sums.dtype)])
        packed = packed.to(meeting_device(self, sums.device))
        dist.all_reduce(packed, group=self.process_group)
        total, found = packed.to(sums.device)
        return torch.where(found > 0, total * (self.group_shards / self.size), torch.nan)

    def _compare(self, seed: float, total: float) -> None:
        """Where not all are the same, at least two differ from the mean, and say so."""
        if total != self.size * seed:
            raise RuntimeError(
                f"rounding_seed is {seed:.0f} here and another on other processes; replicas would drift "
                "apart: pass the same one everywhere"
            )


class Buffers:
    """What one optimizer sends in ``Collective.all_reduce``: made once, used by every step."""

    def __init__(self, collective: Collective, device: torch.device) -> None:
        self.packed = torch.zeros(len(Sum) + 4, dtype=torch.float64, device=device)
        self.sent = self.packed
        self.compared_seed: float | None = None  # which all processes have
        meeting = meeting_device(collective, device)
        if meeting != device:
            self.sent = torch.zeros_like(self.packed, device=meeting)


def meeting_device(collective: Collective, device: torch.device) -> torch.device:
    """Where the processes add up what is on ``device``: there, if they can."""
    # such as "cpu:gloo,cuda:nccl": parameters may be on the host where only their GPUs meet
    config = dist.get_backend_config(collective.process_group)
    meeting = [pair.partition(":")[0] for pair in config.split(",")]
    return device if device.type in meeting else torch.device(meeting[0])
