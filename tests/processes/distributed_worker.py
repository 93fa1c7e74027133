"""What each process of the distributed tests does: every scenario once. ``ranks.py`` starts it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from support import EVERYTHING, make_params, run, set_gradients, stream
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree, SharedStep

SHAPES = [(0,), (7,), (33, 5), (), (257,), (64, 3)]
STEPS = 100

Result = dict[str, Any]


def values_of(params: list) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    return nn.Sequential(*layers).to(torch.float64)


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """8 examples each: a rank takes its share of them."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (8,), generator=generator),
        )
        for _ in range(steps)
    ]


def train(model: Any, optimizer: Any, rank: int, world: int, steps: int = STEPS) -> list[float]:
    losses = []
    optimizer.train()
    for x, target in batches(steps):
        share = slice(rank * 8 // world, (rank + 1) * 8 // world)
        loss = nn.functional.cross_entropy(model(x[share]), target[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    return losses


def ddp(rank: int, world: int, group: Any = None) -> Result:
    """Each rank sees another loss."""
    model = DistributedDataParallel(make_model())
    arguments = {**EVERYTHING, "lr": 0.05, "max_grad_norm": 0.5}
    optimizer = AdamCScheduleFreePlus(model.parameters(), **arguments, process_group=group)
    losses = train(model, optimizer, rank, world)
    return {"params": values_of(list(model.parameters())), "losses": losses}


def ddp_without_the_mean(rank: int, world: int) -> Result:
    """As upstream: each rank takes the step of its own loss."""
    alone = [dist.new_group([other]) for other in range(world)]
    return ddp(rank, world, alone[rank])


def one_rank_has_a_nan(rank: int, world: int) -> Result:
    """In the loss, then in a gradient."""
    params = make_params(SHAPES)
    optimizer = AdamCScheduleFreePlus(params, **EVERYTHING)
    optimizer.train()
    skipped = []
    for k, (loss, gradients) in enumerate(stream(SHAPES, 6)):
        set_gradients(params, gradients)
        if k == 4 and rank == world - 1:
            params[2].grad[0, 0] = float("nan")
        optimizer.step(loss=float("nan") if k == 2 and rank == 0 else loss)
        skipped.append(optimizer.metrics()["skipped_steps"])
    return {"params": values_of(params), "skipped": skipped}


def own(params: list, rank: int, world: int) -> list:
    """Parameters of one rank; the last rank has none but an empty one."""
    if rank == world - 1:
        return params[:1]
    return [p for i, p in enumerate(params) if i % (world - 1) == rank]


def shards(rank: int, world: int, prepared: Callable[..., Any] = lambda step: step) -> Result:
    """Every tensor at one rank only; losses differ; a rank now and then has no gradient."""
    params = make_params(SHAPES)
    mine = own(params, rank, world)
    optimizer = AdamCScheduleFreePlus(
        mine, **EVERYTHING, max_grad_norm=20.0, shard_group=dist.group.WORLD
    )
    optimizer.train()
    step = prepared(optimizer.step)
    for loss, gradients in stream(SHAPES, 20, missing=0.3):
        set_gradients(params, gradients)
        loss += rank - (world - 1) / 2  # of which ``loss`` is the mean
        step(loss=torch.tensor(loss, dtype=torch.float64))
    figures = {key: optimizer.metrics()[key] for key in ("polyak_lr", "grad_norm", "ip_term", "k")}
    return {"params": values_of(params), "figures": figures}


def compiled_shards(rank: int, world: int) -> Result:
    """The same; some of the steps are operators in a graph, at one rank and not at another."""
    return shards(rank, world, lambda step: torch.compile(step, backend="eager"))


def shards_of_adamw(rank: int, world: int) -> Result:
    """A NaN at one rank makes all of them skip."""
    params = make_params(SHAPES)
    optimizer = AdamWScheduleFree(
        own(params, rank, world), lr=0.1, skip_nonfinite=True, shard_group=dist.group.WORLD
    )
    optimizer.train()
    for k, (_, gradients) in enumerate(stream(SHAPES, 5)):
        set_gradients(params, gradients)
        if k == 3:  # of one rank: the others do not hold this parameter
            params[1].grad.fill_(float("inf"))
        optimizer.step()
    return {"k": optimizer.metrics()["k"], "skipped": optimizer.metrics()["skipped_steps"]}


def nobody_has_a_gradient(rank: int, world: int) -> Result:
    params = make_params(SHAPES)
    optimizer = AdamCScheduleFreePlus(params, **EVERYTHING)
    run(optimizer, params, 3)
    before = values_of(params)
    optimizer.zero_grad()
    optimizer.step(loss=1.0)
    same = all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    # without a Polyak step such a step counts, as in one process
    scheduled = SGDScheduleFree(params, lr=0.1, skip_nonfinite=True)
    scheduled.train()
    scheduled.step()
    return {"same": same, "k": optimizer.metrics()["k"], "scheduled k": scheduled.metrics()["k"]}


def loss_reductions(rank: int, world: int) -> Result:
    figures = {}
    for reduction in ("mean", "sum", None):
        params = make_params([(3,)])
        optimizer = AdamCScheduleFreePlus(params, loss_reduce=reduction)
        optimizer.train()
        set_gradients(params, [torch.ones(3)])
        optimizer.step(loss=1.0 + rank if reduction else 5.0)
        figures[str(reduction)] = optimizer.metrics()["function_value"]
    return figures


def zero_redundancy(rank: int, world: int) -> Result:
    """torch's ZeRO-1 around ours: parameters divided, gradients averaged by DDP."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns when it is imported

    model = DistributedDataParallel(make_model())
    arguments = {**EVERYTHING, "lr": 0.05}
    zero = ZeroRedundancyOptimizer(
        model.parameters(),
        optimizer_class=AdamCScheduleFreePlus,
        shard_group=dist.group.WORLD,
        **arguments,
    )

    def enter_train_mode() -> None:
        zero.optim.train()
        for group in zero.param_groups:  # which it copies over those of ``optim`` at each step
            group["train_mode"] = True

    zero.train = enter_train_mode
    train(model, zero, rank, world, 20)
    return {"params": values_of(list(model.parameters()))}


def fsdp1(rank: int, world: int) -> Result:
    """Flat parameters, of which each rank holds a plain piece, padded at the end."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    model = FullyShardedDataParallel(
        make_model(), device_id=torch.device("cpu"), sharding_strategy=ShardingStrategy.FULL_SHARD
    )
    arguments = {**EVERYTHING, "lr": 0.05, "max_grad_norm": 0.5}
    optimizer = AdamCScheduleFreePlus(model.parameters(), shard_group=dist.group.WORLD, **arguments)
    train(model, optimizer, rank, world, 20)
    with FullyShardedDataParallel.summon_full_params(model):
        return {"params": values_of(list(model.parameters()))}


def shared_step(rank: int, world: int) -> Result:
    """Two optimizers step in turns; in one step nobody has a gradient, which all of them skip."""
    params, shared = make_params(SHAPES), SharedStep()
    optimizers = [
        AdamCScheduleFreePlus(part, shared_step=shared, **EVERYTHING)
        for part in (params[:3], params[3:])
    ]
    for optimizer in optimizers:
        optimizer.train()
    for k, (loss, gradients) in enumerate(stream(SHAPES, 7)):
        set_gradients(params, [None] * len(SHAPES) if k == 2 else gradients)
        for optimizer in optimizers[:: 1 if k % 2 else -1]:
            optimizer.step(loss=loss)
    return {
        "params": values_of(params),
        "skipped": [o.metrics()["skipped_steps"] for o in optimizers],
    }


def pipeline(rank: int, world: int) -> Result:
    """The first rank has the first layer, the last one the rest and the loss; others are idle."""
    layers = list(make_model())
    stage = nn.Sequential(*layers[:1] if rank == 0 else layers[1:])
    last = world - 1
    if 0 < rank < last:
        stage = nn.Sequential(nn.Linear(1, 1).to(torch.float64))
    optimizer = AdamCScheduleFreePlus(
        stage.parameters(),
        shard_group=dist.group.WORLD,
        loss_reduce="sum",
        **{**EVERYTHING, "lr": 0.05, "max_grad_norm": 0.5},
    )
    optimizer.train()
    for x, target in batches(20):
        optimizer.zero_grad()
        loss: Any = 0.0
        if rank == 0:
            out = stage(x)
            dist.send(out.detach(), last)
            dist.recv(grad := torch.empty_like(out), last)
            out.backward(grad)
        elif rank == last:
            dist.recv(hidden := torch.empty(8, 9, dtype=torch.float64), 0)
            loss = nn.functional.cross_entropy(stage(hidden.requires_grad_()), target)
            loss.backward()
            dist.send(hidden.grad, 0)
        optimizer.step(loss=loss)
    return {"params": values_of(list(stage.parameters()))}


SCENARIOS: list[Callable[[int, int], Result]] = [
    ddp,
    ddp_without_the_mean,
    one_rank_has_a_nan,
    shards,
    compiled_shards,
    shards_of_adamw,
    nobody_has_a_gradient,
    loss_reductions,
    zero_redundancy,
    fsdp1,
    pipeline,
    shared_step,
]
