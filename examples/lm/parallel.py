"""The processes that train one model together: who they are, and how they divide the model and each batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lm.model import GPT
from lm.settings import Parallel


class Processes:
    """Those of this run, as torchrun started them; without it, this one alone."""

    def __init__(self, parallel: Parallel | None) -> None:
        self.parallel = parallel
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def check(self, batch: int, device: str) -> None:
        """Raise ValueError if these processes cannot train together."""
        if self.parallel is None:
            if self.world > 1:
                raise ValueError(
                    f"{self.world} processes were started, and the run is for one; expected --parallel ddp, "
                    "fsdp or hsdp, or one process (without torchrun)"
                )
            return
        if batch % self.world:
            raise ValueError(
                f"a batch of {batch} sequences cannot be divided equally among {self.world} processes; "
                "take a number of processes that divides it"
            )
        if self.world > 1 and ":" in device:
            raise ValueError(
                f"{device} is one device, and there are {self.world} processes; expected --device cuda, of "
                "which each process takes its own, or cpu"
            )

    def own_device(self, device: str) -> torch.device:
        """Of several GPUs each process on a machine has its own."""
        found = torch.device(device)
        if self.parallel is None or found.type == "cpu" or found.index is not None:
            return found
        return torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Within it the processes can talk to each other: about the model through its device's backend,
        about all else through gloo."""
        if self.parallel is None:
            yield
            return
        own = self.own_device(device)
        backend = "gloo"
        if own.type == "cuda":
            torch.cuda.set_device(own)
            backend = "cpu:gloo,cuda:nccl"
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def from_first(self, value: Any) -> Any:
        """The first process's ``value``, for all."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of them: what they decide together, they decide by this."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def means(self, losses: Sequence[Tensor]) -> list[float]:
        """Of each loss the mean over the processes, which is that of the whole batch: shares are equal."""
        if self.world == 1 or not losses:
            return [loss.item() for loss in losses]
        sums = torch.stack(list(losses)).double()
        dist.all_reduce(sums)
        return (sums / self.world).tolist()

    def share(self, batch: Tensor) -> Tensor:
        """The sequences of a batch that this process takes."""
        return batch.chunk(self.world)[self.rank]

    def divide(self, model: GPT) -> nn.Module:
        """The model, each process holding what ``parallel`` says; all have made it from the same seed."""
        if self.parallel is None:
            return model
        if self.parallel is Parallel.DDP:
            return DistributedDataParallel(model)
        mesh = self._mesh(next(model.parameters()).device.type)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        # By default the root keeps what it gathered for a forward pass until a backward pass. An evaluation
        # has none, and the next forward pass would be one with the weights of the last: at y while
        # the parameters hold x, or the other way round.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        return model

    def _mesh(self, device_type: str) -> DeviceMesh:
        """One dimension, or copies by shares.

        Two copies wherever the processes can be halved. Of two processes each then has a whole copy in
        one share: the other way round, one copy in two shares, there would be no copies to keep equal,
        and hsdp would be fsdp.
        """
        if self.parallel is Parallel.FSDP:
            return init_device_mesh(device_type, (self.world,))
        copies = 1 if self.world % 2 else 2
        names = ("copy", "share")
        return init_device_mesh(device_type, (copies, self.world // copies), mesh_dim_names=names)

    def command(self, script: str) -> list[str]:
        """How such a run is started."""
        if self.world == 1:
            return ["python", script]
        return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), script]
