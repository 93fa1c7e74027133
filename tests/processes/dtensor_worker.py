"""What each process of the tests with DTensors does: every scenario once. ``ranks.py`` starts it."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from distributed_worker import Result
from dtensor_divided import DIVIDED
from dtensor_net import ARGUMENTS, Net, batches, fsdp, tensor_parallel, train, whole, with_rows
from support import EVERYTHING
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from sfplus_kernels import SGD, AdamC, AdamCScheduleFreePlus, AdamWScheduleFree


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
    *DIVIDED,
    scalars_that_are_dtensors,
    state_of_one_process,
    nothing_is_averaged,
    rows_of_a_fixed_norm,
    refusals,
    host_time,
]
