"""What each of two processes sees of a drift that is theirs together; see test_drift_processes.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sfplus_kernels import AdamC, AdamCScheduleFreePlus

SHAPES = [(64, 33), (10,)]


def figures(rank: int | None, **more: Any) -> list[dict[str, list[float]]]:
    """Of each class, after three steps on the whole tensors, or on this rank's half of each."""

    def part(whole: Tensor) -> Tensor:
        return whole if rank is None else whole.flatten().chunk(2)[rank].clone()

    found = []
    for kind, settings in ((AdamC, {"lr": 0.01}), (AdamCScheduleFreePlus, {"weight_decay": 1.0})):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
        params = [torch.nn.Parameter(part(tensor)) for tensor in tensors]
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        optimizer: Any = kind(groups, backend="eager", **settings, **more)  # type: ignore[operator]
        optimizer.monitor_drift("tensor")
        optimizer.train()
        for _ in range(3):
            for param, shape in zip(params, SHAPES, strict=True):
                param.grad = part(torch.randn(shape, generator=generator, dtype=torch.float64))
            optimizer.step(loss=1.0)
        metrics = optimizer.metrics()
        found.append({k: v for k, v in metrics.items() if k.startswith(("group_", "tensor_"))})
        if rank is not None:
            late = optimizer.metrics(wait=False)
            assert not [key for key in late if key.startswith("group_")]
    return found


def divided(rank: int, world: int) -> list[dict[str, list[float]]]:
    return figures(rank, shard_group=dist.group.WORLD)


def copies(rank: int, world: int) -> list[dict[str, list[float]]]:
    return figures(None)


SCENARIOS = [divided, copies]
