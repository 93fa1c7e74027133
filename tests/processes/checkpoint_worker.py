"""What each process of the tests with torch.distributed.checkpoint does; ``ranks.py`` starts it.

Two processes save in a shared folder, others go on from there.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_worker import Result
from dtensor_net import ARGUMENTS, Net, batches, fsdp, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from sfplus_kernels import (
    SGD,
    AdamCScheduleFreePlus,
    AdamW,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    ScheduleFreeWrapper,
    SGDScheduleFree,
)

SAVED_AFTER, STEPS = 4, 8
SAVING_WORLD = 2

MAKERS: dict[str, Callable[[Any], Any]] = {
    "plus": lambda params: AdamCScheduleFreePlus(params, **ARGUMENTS),
    "adamw": lambda params: AdamWScheduleFree(params, lr=0.1, warmup_steps=9),
    "sgd": lambda params: SGDScheduleFree(params, lr=0.1, skip_nonfinite=True),
    "closure": lambda params: AdamWScheduleFreeClosure(params, lr=0.1),
    "plain adamw": lambda params: AdamW(params, lr=0.1, max_grad_norm=1.0),
    "plain sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, dampening=0.5),
    "wrapper": lambda params: ScheduleFreeWrapper(torch.optim.RMSprop(params, lr=0.01)),
}

# which optimizer, dtype of the parameters, saved in train mode, how the model is divided
CASES: dict[str, tuple[str, torch.dtype, bool, str]] = {
    "plus": ("plus", torch.float64, True, "fsdp"),
    "plus, saved in eval mode": ("plus", torch.float64, False, "fsdp"),
    "plus in bfloat16": ("plus", torch.bfloat16, True, "fsdp"),
    "plus under DDP": ("plus", torch.float64, True, "ddp"),
    "adamw": ("adamw", torch.float64, True, "fsdp"),
    "sgd, saved in eval mode": ("sgd", torch.float64, False, "fsdp"),
    "closure form": ("closure", torch.float64, True, "fsdp"),
    "adamw without averages": ("plain adamw", torch.float64, True, "fsdp"),
    "sgd without averages": ("plain sgd", torch.float64, True, "fsdp"),
    "wrapper": ("wrapper", torch.float64, True, "fsdp"),
}


class Run:
    """A model on all ranks, or in one process, and its optimizer."""

    def __init__(self, case: str, rank: int, world: int) -> None:
        kind, self.dtype, self.train_mode, division = CASES[case]
        self.kind, self.rank, self.world = kind, rank, world
        self.model: nn.Module = Net().to(self.dtype)
        if world > 1 and division == "fsdp":
            self.model = fsdp(self.model, init_device_mesh("cpu", (world,)))  # type: ignore[arg-type]
        elif world > 1:
            self.model = DistributedDataParallel(self.model)
        self.optimizer = MAKERS[kind](self.model.parameters())

    def train(self, first: int, last: int) -> None:
        self.optimizer.train() if hasattr(self.optimizer, "train") else None
        for k, (x, target) in enumerate(batches(last)):
            if k < first:
                continue
            if k == SAVED_AFTER and not self.train_mode:  # as the save does
                self.optimizer.eval()
                self.optimizer.train()
            share = slice(self.rank * len(x) // self.world, (self.rank + 1) * len(x) // self.world)

            def closure(x: Any = x[share], target: Any = target[share]) -> Any:
                self.optimizer.zero_grad()
                logits = self.model(x.to(self.dtype))
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
                loss.backward()
                return loss.detach()

            self.optimizer.step(closure)

    def result(self) -> Result:
        params = dict(self.model.named_parameters())
        state = self.optimizer.state
        return {
            "params": {k.removeprefix("module."): whole(p) for k, p in params.items()},
            "dtypes": {
                f"{k.removeprefix('module.')}.{name}": value.dtype
                for k, p in params.items()
                for name, value in state.get(p, {}).items()
            },
            "k": self.optimizer.metrics()["k"],
        }


def stored(run: Run) -> dict[str, Any]:
    """What is saved, or, from a fresh optimizer, what it is to be loaded into."""
    model, optimizer = get_state_dict(run.model, run.optimizer)
    return {"model": model, "optimizer": optimizer}


def save(rank: int, world: int, folder: Path) -> Result:
    """Each case up to its save, and on to its end without an interruption."""
    results = {}
    for case, (_, _, train_mode, _) in CASES.items():
        run = Run(case, rank, world)
        run.train(0, SAVED_AFTER)
        if not train_mode:
            run.optimizer.eval()
        dcp.save(stored(run), checkpoint_id=folder / case)
        if case == "plus":
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, optimizer = get_state_dict(run.model, run.optimizer, options=options)
            if rank == 0:
                torch.save({"model": model, "optimizer": optimizer}, folder / "full.pt")
            dcp.async_save(stored(run), checkpoint_id=folder / "async").result()
        if not train_mode:
            run.optimizer.train()
        run.train(SAVED_AFTER, STEPS)
        results[case] = run.result()
    return results


def resume(rank: int, world: int, folder: Path) -> Result:
    """Each case from its save to its end; the first one also from a full and an asynchronous save."""
    results = {}
    sources = {case: case for case in CASES} | {"async": "plus"}
    for source, case in sources.items():
        run = Run(case, rank, world)
        content = stored(run)
        dcp.load(content, checkpoint_id=folder / source)
        set_state_dict(
            run.model,
            run.optimizer,
            model_state_dict=content["model"],
            optim_state_dict=content["optimizer"],
        )
        run.train(SAVED_AFTER, STEPS)
        results[source] = run.result()
    run = Run("plus", rank, world)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=world > 1)
    content = torch.load(folder / "full.pt") if rank == 0 else {"model": {}, "optimizer": {}}
    set_model_state_dict(run.model, content["model"], options=options)
    set_optimizer_state_dict(run.model, run.optimizer, content["optimizer"], options=options)
    run.train(SAVED_AFTER, STEPS)
    results["full"] = run.result()
    return results


def checkpoints(rank: int, world: int, shared: str) -> Result:
    warnings.simplefilter("ignore")  # torch's own, of its own deprecated names
    folder = Path(shared)
    saved = save(rank, world, folder) if world == SAVING_WORLD else {}
    if world == SAVING_WORLD:
        dist.barrier()
    return {"saved": saved, "resumed": resume(rank, world, folder)}


SCENARIOS = [checkpoints]
