"""What each process of the tests of sharded state in 16 and 8 bits does; ``ranks.py`` starts it."""

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_worker import Result
from support import make_params, stream
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "16bit": [(7, 10), (5,), (6, 5, 7), (1,)],
    "8bit": [(35, 128), (5,), (6, 8, 96), (1,)],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PLACEMENTS: dict[str, list[Placement]] = {
    "rows": [Shard(0)],
    "columns": [Shard(-1)],
    "the middle": [Shard(1)],
    "replicas": [Replicate()],
    "rows and columns": [Shard(0), Shard(-1)],
    "rows in replicas": [Replicate(), Shard(0)],
}


def averaged(params: list[Any], state_format: str) -> Any:
    """Of the roundings alone: nothing that is formed from a sum over processes."""
    return AdamWScheduleFree(
        params,
        lr=0.02,
        weight_decay=0.1,
        inner_momentum=0.9,
        state_format=state_format,
        rounding_seed=3,
    )


def trained(
    state_format: str,
    dtype: torch.dtype,
    mesh: DeviceMesh | None,
    placements: list[Placement],
    make: Callable[[list[Any], str], Any] = averaged,
) -> Result:
    """Some steps at given gradients: parameters, state and, where there is one, x, whole."""
    shapes = SHAPES["16bit" if state_format == "float32" else state_format]
    params = make_params(shapes, dtype)

    def divided(value: torch.Tensor) -> torch.Tensor:
        if mesh is None:
            return value
        last = min(value.dim() - 1, 1) if state_format == "8bit" else value.dim() - 1
        here = [Shard(last) if isinstance(p, Shard) and p.dim < 0 else p for p in placements]
        return distribute_tensor(
            value, mesh, [Replicate() if _is_beyond(p, value) else p for p in here]
        )

    params = [nn.Parameter(divided(p.detach())) for p in params]
    optimizer = make(params, state_format)
    averages = hasattr(optimizer, "iterates")
    if averages:
        optimizer.train()
    for k, (_, gradients) in enumerate(stream(shapes, 6)):
        for p, gradient in zip(params, gradients, strict=True):
            assert gradient is not None
            p.grad = divided(gradient.to(dtype))
        optimizer.step()
        if k == 3 and averages:
            optimizer.eval()
            optimizer.train()
    found = [p.detach() for p in params]
    for p in params:
        found += [optimizer.state[p][n] for n in sorted(optimizer.state[p]) if n != "step"]
        found += [optimizer.iterates(p).x] if averages else []
    return {"tensors": [t.full_tensor() if isinstance(t, DTensor) else t.clone() for t in found]}


def _is_beyond(placement: Placement, value: torch.Tensor) -> bool:
    return isinstance(placement, Shard) and placement.dim >= value.dim()


def divided_in_every_way(rank: int, world: int) -> dict[str, Any]:
    flat = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, world // 2))
    return {
        f"{state_format}, {kind}, {name}": trained(
            state_format, dtype, flat if len(placements) == 1 else grid, placements
        )
        for state_format in SHAPES
        for kind, placements in PLACEMENTS.items()
        for name, dtype in DTYPES.items()
    }


class Model(nn.Module):
    """One matrix whose rows can be cut between blocks of 32, and one whose cannot."""

    def __init__(self, mesh: DeviceMesh | None, placement: Placement) -> None:
        super().__init__()
        wide, narrow, short = make_params([(35, 128), (45, 96), (7,)], torch.bfloat16)
        if mesh is not None:
            wide, narrow = (
                nn.Parameter(distribute_tensor(p.detach(), mesh, [placement]))
                for p in (wide, narrow)
            )
        self.wide, self.narrow, self.short = wide, narrow, short
        arguments: dict[str, Any] = {"lr": 0.02, "inner_momentum": 0.9, "state_format": "8bit"}
        self.optimizer = AdamWScheduleFree(self.parameters(), **arguments)
        self.optimizer.train()

    def step(self, n: int) -> None:
        self.optimizer.train()
        for k in range(n):
            for number, p in enumerate(self.parameters()):
                p.grad = torch.full_like(p, 0.1 * number + 0.03 * k) * (p.detach() + 0.5)
            self.optimizer.step()

    def whole(self) -> dict[str, torch.Tensor]:
        """Values of all that is kept, whatever the format."""
        found = {}
        for name, p in self.named_parameters():
            state = self.optimizer.state[p]
            found[name] = p.detach()
            found[f"{name}.y"] = self.optimizer.iterates(p).y
            found[f"{name}.e"] = state["displacement"]
            found |= {f"{name}.{key}": state[key] for key in sorted(state) if "codes" in key}
        return {
            k: v.full_tensor() if isinstance(v, DTensor) else v.clone() for k, v in found.items()
        }


def reloaded(rank: int, world: int) -> dict[str, Any]:
    """Saved by four processes that have rows, loaded by those that have other parts of it, or all."""
    mesh = init_device_mesh("cpu", (world,))
    folder = [None]
    if rank == 0:
        folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    model = Model(mesh, Shard(0))
    model.step(5)
    saved = get_state_dict(model, model.optimizer)
    dcp.save(dict(zip(("model", "optimizer"), saved, strict=True)), checkpoint_id=folder[0])
    plain = StateDictOptions(full_state_dict=True)
    full = get_state_dict(model, model.optimizer, options=plain)
    found = {"saved": model.whole()}

    def loaded(other: Model, **how: Any) -> dict[str, torch.Tensor]:
        names = ("model", "optimizer")
        content = dict(zip(names, get_state_dict(other, other.optimizer), strict=True))
        dcp.load(content, checkpoint_id=folder[0], **how)
        set_state_dict(
            other,
            other.optimizer,
            model_state_dict=content["model"],
            optim_state_dict=content["optimizer"],
        )
        return other.whole()

    found["rows"] = loaded(Model(mesh, Shard(0)))
    found["replicas"] = loaded(Model(mesh, Replicate()))
    found["one process"] = loaded(Model(None, Replicate()), no_dist=True)
    try:  # parts that cut blocks are kept in 16 bits, under other names
        loaded(Model(mesh, Shard(1)))
    except CheckpointException as error:
        found["refused"] = str(error)
    columns = Model(mesh, Shard(1))
    state = {
        "state": dict(enumerate(full[1]["state"][name] for name, _ in model.named_parameters())),
        "param_groups": [{**full[1]["param_groups"][0], "params": [0, 1, 2]}],
    }
    columns.optimizer.load_state_dict(state)
    with torch.no_grad():
        for name, p in columns.named_parameters():
            value = full[0][name]
            here = distribute_tensor(value, mesh, [Shard(1)]) if isinstance(p, DTensor) else value
            p.copy_(here)
    found["columns"] = columns.whole()
    kept = columns.optimizer.state[columns.narrow]
    found["in 16 bits"] = [str(kept[name].dtype) for name in ("exp_avg", "exp_avg_sq", "y_low")]
    columns.step(1)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder[0])
    return found


def in_another_format(rank: int, world: int) -> dict[str, Any]:
    """Saved in float32 by four processes that have 8 bits; loaded by fewer, and in other parts."""
    mesh = init_device_mesh("cpu", (world,))
    folder = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)
    model = Model(mesh, Shard(0))
    model.step(5)
    dcp.save(
        {"model": model.state_dict(), "optimizer": model.optimizer.state_dict_in("float32")},
        checkpoint_id=folder[0],
    )
    found: dict[str, Any] = {"saved": model.whole()}

    def loaded(other: Model, **how: Any) -> dict[str, torch.Tensor]:
        for p in other.parameters():
            p.grad = torch.zeros_like(p)
        other.optimizer.param_groups[0]["lr"] = 0.0
        other.optimizer.step()  # only makes state
        content = {
            "model": other.state_dict(),
            "optimizer": other.optimizer.state_dict_in("float32"),
        }
        dcp.load(content, checkpoint_id=folder[0], **how)
        other.optimizer.load_state_dict(content["optimizer"])
        return other.whole()

    for size in (1, 2, 3):
        group = dist.new_group(list(range(size)))
        if rank < size:
            part = DeviceMesh.from_group(group, "cpu", mesh=list(range(size)))
            found[f"{size} processes"] = loaded(Model(part, Shard(0)), process_group=group)
    found["columns"] = loaded(Model(mesh, Shard(1)))
    found["one process"] = loaded(Model(None, Replicate()), no_dist=True)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder[0])
    return found


def replicas(rank: int, world: int) -> dict[str, Any]:
    """Each process sees other data; sums and gradients are of all."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 32)).bfloat16()
    model = nn.parallel.DistributedDataParallel(module)
    arguments: dict[str, Any] = {"lr": 0.05, "polyak_beta": 0.9, "state_format": "8bit"}
    optimizer = AdamCScheduleFreePlus(model.parameters(), rounding_seed=5, **arguments)
    optimizer.train()
    generator = torch.Generator().manual_seed(rank)
    for _ in range(200):
        x = torch.randn(4, 32, generator=generator).bfloat16()
        loss = (model(x) - x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    kept = [t for p in model.parameters() for t in (p.detach(), *optimizer.state[p].values())]
    found: dict[str, Any] = {"tensors": kept, "formats": optimizer.state_formats()}
    before = [t.clone() for t in kept]
    found["refused"] = refusal(optimizer, rank)
    found["unchanged"] = all(map(torch.equal, kept, before))
    optimizer.param_groups[0]["rounding_seed"] = 7
    optimizer.step(loss=1.0)
    found["k"] = optimizer.metrics()["k"]
    # from the checkpoint of a process with another one
    saved = optimizer.state_dict()
    saved["param_groups"][0]["rounding_seed"] = rank
    optimizer.load_state_dict(saved)
    found["loaded"] = refusal(optimizer, 0, loaded=True)
    return found


def refusal(optimizer: Any, seed: int, *, loaded: bool = False) -> str:
    """What a step says of ``rounding_seed``."""
    if not loaded:
        optimizer.param_groups[0]["rounding_seed"] = seed
    try:
        optimizer.step(loss=1.0)
    except RuntimeError as error:
        return str(error)
    return ""


def divided_too_late(rank: int, world: int) -> str:
    """A model that is divided after its optimizer has state, in parts that cut blocks."""
    mesh = init_device_mesh("cpu", (world,))
    model = Model(None, Replicate())
    model.step(1)
    optimizer, whole = model.optimizer, model.narrow
    state = optimizer.state.pop(whole)
    part = nn.Parameter(distribute_tensor(whole.detach(), mesh, [Shard(1)]))
    part.grad = torch.ones_like(part)
    optimizer.param_groups[0]["params"] = [part]
    optimizer.state[part] = state
    before = {name: value.clone() for name, value in state.items()}
    try:
        optimizer.step()
    except RuntimeError as error:
        assert all(torch.equal(state[name], before[name]) for name in before)
        return str(error)
    return ""


SCENARIOS = [divided_in_every_way, reloaded, in_another_format, replicas, divided_too_late]
