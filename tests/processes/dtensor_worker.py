"""What each process of the tests with DTensors does: every scenario once. ``ranks.py`` starts it."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from distributed_worker import Result
from support import EVERYTHING
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from sfplus_kernels import SGD, AdamC, AdamCScheduleFreePlus, AdamWScheduleFree

STEPS = 12
BATCH, SEQUENCE, WIDTH, CLASSES = 4, 8, 6, 3
# clips now and then; the frozen parameter and the decay are in every scenario
ARGUMENTS = {**EVERYTHING, "lr": 0.05, "max_grad_norm": 0.5}


class Net(nn.Module):
    """A norm, two layers, a head of 3 rows, a bias of its own, and a scale that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(WIDTH)
        self.first = nn.Linear(WIDTH, 8)
        self.second = nn.Linear(8, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.scale = nn.Parameter(torch.full((1, WIDTH), 1.5), requires_grad=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.second(torch.tanh(self.first(self.norm(x)))))


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, SEQUENCE, WIDTH, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH, SEQUENCE), generator=generator),
        )
        for _ in range(steps)
    ]


def train(
    model: nn.Module, optimizer: Any, part: int = 0, parts: int = 1, steps: int = STEPS
) -> list[float]:
    """Steps on part ``part`` of ``parts`` of each batch; evaluates in the middle."""
    losses = []
    optimizer.train()
    for k, (x, target) in enumerate(batches(steps)):
        share = slice(part * BATCH // parts, (part + 1) * BATCH // parts)
        logits = model(x[share])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[share].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
        if k == steps // 2:
            optimizer.eval()
            with torch.no_grad():
                model(x[share])
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # see fsdp2_in_one_piece
            optimizer.train()
    return losses


def whole(tensor: Any) -> Tensor:
    """All elements of a tensor, wherever they are."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def trained(model: nn.Module, part: int, parts: int, optimizer: Any = None) -> Result:
    optimizer = optimizer or AdamCScheduleFreePlus(model.parameters(), **ARGUMENTS)
    losses = train(model, optimizer, part, parts)
    metrics = optimizer.metrics()
    params = dict(model.named_parameters())
    kinds = {
        name: {key: type(value).__name__ for key, value in optimizer.state[p].items()}
        for name, p in params.items()
    }
    return {
        "losses": losses,
        "params": {name: whole(p) for name, p in params.items()},
        "x": {name: whole(optimizer.iterates(p).x) for name, p in params.items()},
        "metrics": {key: metrics[key] for key in ("grad_norm", "polyak_lr", "ip_term", "k")},
        "kinds": kinds,
        "types": {name: type(p).__name__ for name, p in params.items()},
        "local": {
            name: p.to_local().numel() if isinstance(p, DTensor) else p.numel()
            for name, p in params.items()
        },
        "steps": [
            float(optimizer.state[p]["step"]) for p in params.values() if optimizer.state.get(p)
        ],
    }


def layers(model: Net) -> tuple[nn.Module, ...]:
    return (model.norm, model.first, model.second, model.head)


def fsdp(model: Net, mesh: DeviceMesh, **arguments: Any) -> Net:
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, **arguments)
    return fully_shard(model, mesh=mesh, **arguments)


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


def mean_gradient(p: Tensor) -> None:
    assert p.grad is not None
    dist.all_reduce(p.grad)
    p.grad /= dist.get_world_size()


def tensor_parallel(model: Net, mesh: DeviceMesh) -> Net:
    """Columns, rows, and what is whole everywhere."""
    parallelize_module(model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return model


def tp(rank: int, world: int) -> Result:
    """The norm and the head are plain parameters, whole on each rank, like its loss."""
    return trained(tensor_parallel(Net(), init_device_mesh("cpu", (world,))), 0, 1)


def sequence_parallel(model: Net, mesh: DeviceMesh) -> Net:
    """The norm sees a part of each sequence, so that its gradient is a sum over the ranks."""
    along = Shard(1)
    plan: dict[str, Any] = {
        "norm": SequenceParallel(),
        "first": ColwiseParallel(input_layouts=along),
        "second": RowwiseParallel(output_layouts=along, use_local_output=False),
        "head": ColwiseParallel(input_layouts=along, output_layouts=Replicate()),
    }
    prepare = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=along)
    parallelize_module(model, mesh, prepare)
    parallelize_module(model, mesh, plan)
    return model


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


def scalars_that_are_dtensors(rank: int, world: int) -> Result:
    """A loss, the norm that torch clips to and what a gradient scaler finds, against plain numbers."""
    mesh, results = init_device_mesh("cpu", (world,)), {}
    for dtensors in (False, True):
        model = fsdp(Net(), mesh)
        optimizer = AdamCScheduleFreePlus(model.parameters(), **EVERYTHING)
        optimizer.train()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for k, (x, target) in enumerate(batches(6)):
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if k == 3 and rank == 1:
                model.first.weight.grad.to_local().fill_(float("inf"))
            scaler.unscale_(optimizer)
            norm: Any = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            coef: Any = (0.5 / (norm + 1e-6)).clamp(max=1)
            if dtensors:
                loss = DTensor.from_local(loss.detach() / world, mesh, [Partial()])
            else:
                coef = float(coef.full_tensor())
            scaler.step(optimizer, loss=loss, clip_coef=coef)
            scaler.update()
        metrics = optimizer.metrics()
        results[dtensors] = {
            "params": [whole(p) for p in model.parameters()],
            "k": metrics["k"],
            "skipped": metrics["skipped_steps"],
            "norm is a DTensor": isinstance(norm, DTensor),
        }
    return results


def state_of_one_process(rank: int, world: int) -> Result:
    """Loaded as it is, plain tensors with all elements: the buffers that are not what was saved."""
    alone = [dist.new_group([other]) for other in range(world)][rank]
    one, divided = Net(), fsdp(Net(), init_device_mesh("cpu", (world,)))
    saved = AdamCScheduleFreePlus(one.parameters(), process_group=alone, **ARGUMENTS)
    train(one, saved, steps=3)
    loaded = AdamCScheduleFreePlus(divided.parameters(), **ARGUMENTS)
    loaded.load_state_dict(saved.state_dict())
    states = [
        (saved.state[p], loaded.state[q])
        for p, q in zip(one.parameters(), divided.parameters(), strict=True)
        if p.requires_grad
    ]
    return {
        "buffers": sum(len(state) for state, _ in states),
        "wrong": [
            name
            for expected, found in states
            for name, value in expected.items()
            if not torch.equal(whole(found[name]), value)
        ],
    }


def nothing_is_averaged(rank: int, world: int) -> Result:
    """AdamC and SGD of one process on the whole, and of all on their parts; torch's state of the whole."""
    alone = [dist.new_group([other]) for other in range(world)][rank]
    mesh = init_device_mesh("cpu", (world,))
    arguments = {"lr": 0.02, "weight_decay": 0.1, "max_grad_norm": 0.5}
    results = {}
    for name, make, more in (("adamc", AdamC, {}), ("sgd", SGD, {"momentum": 0.9})):
        one, divided = Net(), fsdp(Net(), mesh)
        whole_run = make(one.parameters(), process_group=alone, **arguments, **more)
        train(one, whole_run)
        parts = make(divided.parameters(), **arguments, **more)
        train(divided, parts, rank, world)
        loaded = make(fsdp(Net(), mesh).parameters(), **arguments, **more, normalized=False)
        whole_run.param_groups[0].update(normalized=False, max_grad_norm=None)
        loaded.load_state_dict(whole_run.to_upstream_state_dict())
        results[name] = {
            "whole": [whole(p) for p in one.parameters()],
            "parts": [whole(p) for p in divided.parameters()],
            "state": [whole(s["step"]) for s in whole_run.state.values() if name == "adamc"],
            "loaded": [whole(s["step"]) for s in loaded.state.values() if name == "adamc"],
            "moments": [
                [whole(v) for k, v in s.items() if k != "step"] for s in whole_run.state.values()
            ],
            "loaded moments": [
                [whole(v) for k, v in s.items() if k != "step"] for s in loaded.state.values()
            ],
        }
    return results


def with_rows(model: nn.Module) -> list[dict[str, Any]]:
    """Groups: matrices whose rows have a fixed norm, and the rest."""
    params = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in params if p.dim() > 1]
    return [
        {"params": matrices, "row_norm": 1.5},
        {"params": [p for p in params if p.dim() == 1]},
    ]


def rows_of_a_fixed_norm(rank: int, world: int) -> Result:
    """Whole rows on each process, none on some; and rows that are cut, along dimension 1 or in tp."""
    alone = [dist.new_group([other]) for other in range(world)][rank]
    mesh = init_device_mesh("cpu", (world,))
    one, divided = Net(), fsdp(Net(), mesh)
    train(one, AdamCScheduleFreePlus(with_rows(one), process_group=alone, **ARGUMENTS))
    optimizer = AdamCScheduleFreePlus(with_rows(divided), **ARGUMENTS)
    train(divided, optimizer, rank, world)
    matrices = optimizer.param_groups[0]["params"]
    columns = nn.Parameter(distribute_tensor(torch.ones(4, 8), mesh, [Shard(1)]))
    cut: dict[str, Any] = {
        "columns": [{"params": [columns], "row_norm": 1.5}],
        "tp": with_rows(tensor_parallel(Net(), mesh)),
    }
    refused = {}
    for name, groups in cut.items():
        try:
            AdamCScheduleFreePlus(groups, **ARGUMENTS)
        except ValueError as error:
            refused[name] = str(error)
    return {
        "whole": [whole(p) for p in one.parameters()],
        "parts": [whole(p) for p in divided.parameters()],
        "norms": [whole(optimizer.iterates(p).z).norm(dim=1) for p in matrices],
        "refused": refused,
    }


def refusals(rank: int, world: int) -> Result:
    """What cannot be used, and what is said of it."""
    mesh = init_device_mesh("cpu", (world,))
    messages = {}

    def note(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except (TypeError, ValueError) as error:
            messages[name] = f"{type(error).__name__}: {error}"

    sums = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    note("sums", lambda: AdamCScheduleFreePlus([sums], backend="cpu"))

    divided = distribute_tensor(torch.ones(4), mesh, [Shard(0)])

    def step(param: nn.Parameter, grad: Tensor, data: Tensor | None = None) -> None:
        optimizer = AdamCScheduleFreePlus([param])
        optimizer.train()
        param.grad = grad
        if data is not None:
            param.data = data
        optimizer.step(loss=1.0)

    ones = torch.ones(4)
    note("plain gradient", lambda: step(nn.Parameter(divided), ones))
    note("plain parameter", lambda: step(nn.Parameter(ones), divided))
    note("replaced", lambda: step(nn.Parameter(ones), ones, divided))

    sharded = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    alone = [dist.new_group([other]) for other in range(world)][rank]
    optimizer = AdamCScheduleFreePlus([sharded], process_group=alone)
    optimizer.train()
    sharded.grad = torch.ones_like(sharded)
    note("group", lambda: optimizer.step(loss=1.0))
    return messages


def host_time(rank: int, world: int) -> Result:
    """Least time of a step of 1,000 small parameters, as DTensors and as plain tensors."""
    mesh, seconds = init_device_mesh("cpu", (world,)), {}
    ones = distribute_tensor(torch.ones(8), mesh, [Shard(0)])
    for kind, value in (("plain", ones.to_local()), ("dtensor", ones)):
        params = [nn.Parameter(value.clone()) for _ in range(1000)]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = AdamWScheduleFree(params)
        optimizer.train()
        times = []
        for _ in range(15 if rank == 0 else 0):  # the others stay out of the way
            start = time.perf_counter()
            optimizer.step()
            times.append(time.perf_counter() - start)
        dist.barrier()
        seconds[kind] = min(times, default=0.0)
    return seconds


SCENARIOS: list[Callable[[int, int], Result]] = [
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
    scalars_that_are_dtensors,
    state_of_one_process,
    nothing_is_averaged,
    rows_of_a_fixed_norm,
    refusals,
    host_time,
]
