"""The model of ``dtensor_net`` divided in every way: what each process does for a run of it."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from distributed_worker import Result
from dtensor_net import (
    ARGUMENTS,
    Net,
    fsdp,
    mean_gradient,
    sequence_parallel,
    tensor_parallel,
    trained,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sfplus_kernels import AdamCScheduleFreePlus


def fsdp2(rank: int, world: int) -> Result:
    """Uneven: 3 rows of the head among 4, and a frozen row that one rank holds alone."""
    return trained(fsdp(Net(), init_device_mesh("cpu", (world,))), rank, world)


def fsdp2_in_one_piece(rank: int, world: int) -> Result:
    """The root has all parameters, and keeps them whole after a forward pass, for the backward pass.

    After a validation there is none: the next forward pass would use what was whole then, which is x.
    """
    model = fully_shard(Net(), mesh=init_device_mesh("cpu", (world,)))
    return trained(model, rank, world)


def fsdp2_after_the_optimizer(rank: int, world: int) -> Result:
    """As Accelerate does: the model is divided, and its new parameters are put into the groups."""
    model = Net()
    optimizer = AdamCScheduleFreePlus(model.parameters(), **ARGUMENTS)
    names = {id(p): name for name, p in model.named_parameters()}
    fsdp(model, init_device_mesh("cpu", (world,)))
    new = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [new[names[id(p)]] for p in group["params"]]
    return trained(model, rank, world, optimizer)


def fsdp2_with_offload(rank: int, world: int) -> Result:
    mesh = init_device_mesh("cpu", (world,))
    policy = CPUOffloadPolicy(pin_memory=False)
    return trained(fsdp(Net(), mesh, offload_policy=policy), rank, world)


def hsdp(rank: int, world: int) -> Result:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    return trained(fsdp(Net(), mesh), rank, world)


def some_layers_sharded(rank: int, world: int) -> Result:
    """DTensors beside plain parameters, whose gradients are averaged by hand."""
    model, mesh = Net(), init_device_mesh("cpu", (world,))
    fully_shard(model.second, mesh=mesh)
    for p in model.parameters():
        if not isinstance(p, DTensor) and p.requires_grad:
            p.register_post_accumulate_grad_hook(mean_gradient)
    return trained(model, rank, world)


def tp(rank: int, world: int) -> Result:
    """The norm and the head are plain parameters, whole on each rank, like its loss."""
    return trained(tensor_parallel(Net(), init_device_mesh("cpu", (world,))), 0, 1)


def sp(rank: int, world: int) -> Result:
    model = sequence_parallel(Net(), init_device_mesh("cpu", (world,)))
    placements: list[str] = []
    model.norm.weight.register_post_accumulate_grad_hook(
        lambda p: placements.append(str(p.grad.placements))
    )
    return {**trained(model, 0, 1), "placements": placements}


def fsdp_x_tp(rank: int, world: int) -> Result:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    model = sequence_parallel(Net(), mesh["tp"])
    return trained(fsdp(model, mesh["dp"]), mesh["dp"].get_local_rank(), 2)


def tp_in_replicas(rank: int, world: int) -> Result:
    """A mesh that is smaller than the process group: tensor parallelism in each of two replicas."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
    model, group = tensor_parallel(Net(), mesh["tp"]), mesh["dp"].get_group()

    def mean(p: Any) -> None:
        grad = p.grad.to_local() if isinstance(p, DTensor) else p.grad
        dist.all_reduce(grad, group=group)
        grad /= 2

    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(mean)
    return trained(model, mesh["dp"].get_local_rank(), 2)


DIVIDED: list[Callable[[int, int], Result]] = [
    fsdp2,
    fsdp2_in_one_piece,
    fsdp2_after_the_optimizer,
    fsdp2_with_offload,
    hsdp,
    some_layers_sharded,
    tp,
    sp,
    fsdp_x_tp,
    tp_in_replicas,
]
