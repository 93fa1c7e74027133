"""The model of the tests with DTensors, how it is trained, and the ways to divide it."""

from typing import Any

import torch
import torch.distributed as dist
from distributed_worker import Result
from support import EVERYTHING
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from sfplus_kernels import AdamCScheduleFreePlus

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


def tensor_parallel(model: Net, mesh: DeviceMesh) -> Net:
    """Columns, rows, and what is whole everywhere."""
    parallelize_module(model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return model


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


def mean_gradient(p: Tensor) -> None:
    assert p.grad is not None
    dist.all_reduce(p.grad)
    p.grad /= dist.get_world_size()


def with_rows(model: nn.Module) -> list[dict[str, Any]]:
    """Groups: matrices whose rows have a fixed norm, and the rest."""
    params = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in params if p.dim() > 1]
    return [
        {"params": matrices, "row_norm": 1.5},
        {"params": [p for p in params if p.dim() == 1]},
    ]
