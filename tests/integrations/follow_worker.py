"""What the processes of test_follow_ranks.py do."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sfplus_kernels import AdamCScheduleFreePlus, follow

ROUNDS = 4


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 4)
    )


def batch(k: int, rank: int = 0, world: int = 1) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(k))[rank::world]


def optimizer_of(model: nn.Module) -> AdamCScheduleFreePlus:
    return AdamCScheduleFreePlus(model.parameters(), lr=1.0, weight_decay=0.5)


def train_and_validate(
    model: nn.Module, optimizer: Any, rank: int, world: int, *, by_hand: bool, save: bool = False
) -> list[Tensor]:
    """The losses of validations, of which two follow each other with two steps between them, and one save."""
    found = []
    for k in range(ROUNDS):
        model.train()
        for step in range(2):
            if by_hand:
                optimizer.train()
            loss = model(batch(2 * k + step, rank, world)).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
            optimizer.zero_grad()
        if save:
            model.state_dict()
        model.eval()
        if by_hand:
            optimizer.eval()
        with torch.no_grad():
            loss = model(batch(50, rank, world)).square().mean()
            if world > 1:
                dist.all_reduce(loss)
                loss /= world
        found.append(loss.detach())
    return found


def fsdp2(rank: int, world: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    mesh = init_device_mesh("cpu", (world,))
    for reshard in (True, False):
        for by_hand in (True, False):
            for save in (False, True):
                model = make()
                fully_shard(model[2], mesh=mesh, reshard_after_forward=reshard)
                fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
                optimizer = optimizer_of(model)
                if not by_hand:
                    follow(model, optimizer)
                found[reshard, by_hand, save] = train_and_validate(
                    model, optimizer, rank, world, by_hand=by_hand, save=save
                )
                if not by_hand and save:
                    x = [
                        optimizer.iterates(p).x for g in optimizer.param_groups for p in g["params"]
                    ]
                    file = model.state_dict()
                    names = optimizer.state_dict()["param_groups"][0]["param_names"]
                    found[reshard, "saved"] = all(
                        torch.equal(file[name].full_tensor(), value.full_tensor())
                        for name, value in zip(names, x, strict=True)
                    )
    return found


def ddp(rank: int, world: int) -> dict[str, Any]:
    """Saved on all ranks, often: the replicas stay equal."""
    model = make()
    optimizer = optimizer_of(model)
    follow(model, optimizer)
    wrapped = nn.parallel.DistributedDataParallel(model)
    losses = train_and_validate(wrapped, optimizer, rank, world, by_hand=False, save=True)
    return {"losses": losses, "params": [p.detach() for p in model.parameters()]}


SCENARIOS = [fsdp2, ddp]
