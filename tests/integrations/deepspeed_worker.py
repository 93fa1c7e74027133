"""What the processes of test_deepspeed.py do: ZeRO stages 0 to 2, on one rank and on two."""

import importlib.util
import os
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from libraries import batches, held, net
from torch import nn

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree
from sfplus_kernels.integrations import deepspeed as adapter

STAGES = (0, 1, 2)
STEPS = 3
ACCUMULATION = 2


def plus(params: Any) -> AdamCScheduleFreePlus:
    return AdamCScheduleFreePlus(params, lr=0.1, weight_decay=5.0)


def adamw(params: Any) -> AdamWScheduleFree:
    return AdamWScheduleFree(params, lr=0.05, weight_decay=0.1)


def groups_of(params: Any) -> list[dict[str, Any]]:
    """As the Hugging Face Trainer makes them."""
    some = list(params)
    return [
        {"params": [p for p in some if p.ndim > 1]},
        {"params": [p for p in some if p.ndim == 1], "weight_decay": 0.0},
    ]


def adamw_in_groups(params: Any) -> AdamWScheduleFree:
    return adamw(groups_of(params))


def engine_of(stage: int, maker: Any = plus, seed: int = 0, clipping: float = 0.0) -> Any:
    import deepspeed

    os.environ["LOCAL_RANK"] = str(dist.get_rank())  # as a launcher would
    model = net(seed)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": ACCUMULATION,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": clipping,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=maker(model.parameters()), config=config, dist_init_required=False
    )
    return engine


def share(rank: int, world: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's micro-batches."""
    return [(x[rank::world], y[rank::world]) for x, y in batches(4 * world, STEPS * ACCUMULATION)]


def train(engine: Any, rank: int, world: int, first: int = 0, last: int = STEPS) -> dict[str, Any]:
    figures: dict[str, Any] = {"losses": [], "norms": [], "polyak": []}
    inner = sfplus_kernels.optim.unwrap(engine)
    for k, (x, y) in enumerate(share(rank, world)):
        if not first * ACCUMULATION <= k < last * ACCUMULATION:
            continue
        loss = nn.functional.cross_entropy(engine(x), y)
        adapter.report_loss(engine, loss)
        engine.backward(loss)
        engine.step()
        if (k + 1) % ACCUMULATION == 0 and inner.needs_loss:
            metrics = inner.metrics()
            figures["losses"].append(metrics["function_value"])
            figures["norms"].append(metrics["grad_norm"])
            figures["polyak"].append(metrics["polyak_lr"])
    return figures


def plain(maker: Any, world: int, steps: int = STEPS) -> tuple[nn.Module, Any, dict[str, Any]]:
    """One process with all micro-batches."""
    model = net()
    optimizer = maker(model.parameters())
    optimizer.train()
    figures: dict[str, Any] = {"losses": [], "norms": [], "polyak": []}
    for k, (x, y) in enumerate(batches(4 * world, steps * ACCUMULATION)):
        loss = nn.functional.cross_entropy(model(x), y)
        (loss / ACCUMULATION).backward()
        sfplus_kernels.report_loss(optimizer, loss)
        if (k + 1) % ACCUMULATION == 0:
            optimizer.step()
            optimizer.zero_grad()
            if optimizer.needs_loss:
                metrics = optimizer.metrics()
                figures["losses"].append(metrics["function_value"])
                figures["norms"].append(metrics["grad_norm"])
                figures["polyak"].append(metrics["polyak_lr"])
    return model, optimizer, figures


def trains_and_evaluates(rank: int, world: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for maker in (plus, adamw, adamw_in_groups):
        for stage in STAGES:
            engine = engine_of(stage, maker)
            adapter.prepare(engine)
            adapter.train(engine)
            figures = train(engine, rank, world)
            y = held(engine.module)
            adapter.eval(engine)
            x = held(engine.module)
            adapter.train(engine)
            found[maker.__name__, stage] = {**figures, "y": y, "x": x, "again": held(engine.module)}
    return found


def without_the_adapter(rank: int, world: int) -> dict[str, Any]:
    """As one would use it: the inner optimizer's modes, no word on who holds what."""
    engine = engine_of(1)
    inner = sfplus_kernels.optim.unwrap(engine)
    inner.train()
    figures = train(engine, rank, world)
    y = held(engine.module)
    inner.eval()
    return {**figures, "y": y, "x": held(engine.module)}


def clipping(rank: int, world: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for stage in STAGES:
        for prepared in (True, False):
            engine = engine_of(stage, clipping=0.1)
            inner = sfplus_kernels.optim.unwrap(engine)
            if prepared:
                adapter.prepare(engine)
            elif stage:
                inner.shard_group = dist.group.WORLD
            adapter.train(engine)
            found[stage, prepared] = {
                **train(engine, rank, world, 0, 1),
                "max_grad_norm": inner.param_groups[0]["max_grad_norm"],
            }
    return found


def resumes(rank: int, world: int) -> dict[Any, Any]:
    """Saved in either mode; the model and x, y, z of the flat parts after two more steps."""
    found: dict[Any, Any] = {}
    for stage in STAGES[1:]:
        for mode in ("train", "eval"):
            path = [""]
            if rank == 0:
                folder = TemporaryDirectory()
                path = [folder.name]
            dist.broadcast_object_list(path)
            results = []
            for resumed in (False, True):
                engine = engine_of(stage, seed=5 if resumed else 0)
                adapter.prepare(engine)
                adapter.train(engine)
                if resumed:
                    engine.load_checkpoint(path[0], tag="it")
                else:
                    train(engine, rank, world, 0, 1)
                    if mode == "eval":
                        adapter.eval(engine)
                    engine.save_checkpoint(path[0], tag="it")
                adapter.train(engine)
                figures = train(engine, rank, world, 1, 3)
                inner = sfplus_kernels.optim.unwrap(engine)
                parts = [p for group in inner.param_groups for p in group["params"]]
                results.append(
                    (held(engine.module), [tuple(inner.iterates(p)) for p in parts], figures)
                )
            dist.barrier()
            if rank == 0:
                folder.cleanup()
            found[stage, mode] = results
    return found


def refusals(rank: int, world: int) -> dict[str, str]:
    def two_groups(params: Any) -> AdamCScheduleFreePlus:
        some = list(params)
        return AdamCScheduleFreePlus([{"params": some[:2]}, {"params": some[2:]}], lr=0.1)

    found = {}
    try:
        adapter.prepare(engine_of(1, two_groups))
    except ValueError as error:
        found["groups"] = str(error)
    return found


SCENARIOS = [trains_and_evaluates, without_the_adapter, clipping, resumes, refusals]

if importlib.util.find_spec("deepspeed"):
    import deepspeed  # once, before the processes part

    # else it tries the compiler on all of its operators, and builds one for shared memory: gloo will do
    deepspeed.ops.__compatible_ops__ = {}
