"""What each process of the tests of sharded state in 16 bits does; ``ranks.py`` starts it."""

from typing import Any

import torch
from distributed_worker import Result
from support import make_params, stream
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from sfplus_kernels import AdamWScheduleFree

SHAPES = [(7, 10), (5,), (6, 5, 7), (1,)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PLACEMENTS: dict[str, list[Placement]] = {
    "rows": [Shard(0)],
    "columns": [Shard(-1)],
    "the middle": [Shard(1)],
    "replicas": [Replicate()],
    "rows and columns": [Shard(0), Shard(-1)],
    "rows in replicas": [Replicate(), Shard(0)],
}


def trained(dtype: torch.dtype, mesh: DeviceMesh | None, placements: list[Placement]) -> Result:
    """Some steps at given gradients: parameters, state and x, whole."""
    params = make_params(SHAPES, dtype)

    def divided(value: torch.Tensor) -> torch.Tensor:
        if mesh is None:
            return value
        here = [
            Shard(p.dim % value.dim()) if isinstance(p, Shard) and p.dim < value.dim() else p
            for p in placements
        ]
        return distribute_tensor(
            value, mesh, [Replicate() if _is_beyond(p, value) else p for p in here]
        )

    params = [nn.Parameter(divided(p.detach())) for p in params]
    # of the roundings alone: nothing that is formed from a sum over processes
    optimizer = AdamWScheduleFree(
        params, lr=0.02, weight_decay=0.1, inner_momentum=0.9, state_format="16bit", rounding_seed=3
    )
    optimizer.train()
    for k, (_, gradients) in enumerate(stream(SHAPES, 6)):
        for p, gradient in zip(params, gradients, strict=True):
            assert gradient is not None
            p.grad = divided(gradient.to(dtype))
        optimizer.step()
        if k == 3:
            optimizer.eval()
            optimizer.train()
    found = [p.detach() for p in params]
    for p in params:
        found += [optimizer.state[p][n] for n in sorted(optimizer.state[p]) if n != "step"]
        found.append(optimizer.iterates(p).x)
    return {"tensors": [t.full_tensor() if isinstance(t, DTensor) else t.clone() for t in found]}


def _is_beyond(placement: Placement, value: torch.Tensor) -> bool:
    return isinstance(placement, Shard) and placement.dim >= value.dim()


def divided_in_every_way(rank: int, world: int) -> dict[str, Any]:
    flat = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, world // 2))
    return {
        f"{kind}, {name}": trained(dtype, flat if len(placements) == 1 else grid, placements)
        for kind, placements in PLACEMENTS.items()
        for name, dtype in DTYPES.items()
    }


SCENARIOS = [divided_in_every_way]
