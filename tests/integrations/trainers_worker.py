"""What the processes of test_trainers_ranks.py do: each trainer's own data parallelism."""

import importlib.util
import os
import socket
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from libraries import Regression, Watch, held, iterate, net, same
from torch import nn

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.optim import unwrap

STEPS = 3


def plus(params: Any) -> AdamCScheduleFreePlus:
    return AdamCScheduleFreePlus(params, lr=0.1, weight_decay=5.0)


def as_launched(rank: int, world: int) -> None:
    """The environment that torchrun would have made."""
    warnings.simplefilter("ignore")
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    found |= {"MASTER_ADDR": socket.gethostbyname("localhost"), "MASTER_PORT": 29500}
    found |= {"TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in found.items()})


def shared_folder(rank: int) -> tuple[Path, Any]:
    path, folder = [""], None
    if rank == 0:
        folder = TemporaryDirectory()
        path = [folder.name]
    dist.broadcast_object_list(path)
    return Path(path[0]), folder


def transformers(rank: int, world: int) -> dict[str, Any]:
    """Saved and evaluated at other steps; what each rank holds, and what the trainer logged."""
    as_launched(rank, world)
    if not importlib.util.find_spec("transformers"):
        return {}
    import transformers_runs as runs
    from safetensors.torch import load_file

    folder, owner = shared_folder(rank)
    batch = 4 // world  # for the same steps with one process and with two
    trainer = runs.run(
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=2,
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        max_grad_norm=0.3,
        ddp_backend="gloo",
        train_sampling_strategy="sequential",
    )
    x = iterate(trainer.model, trainer.inner)
    found = {
        "losses": trainer.watch.losses,
        "norms": trainer.watch.norms,
        "polyak": trainer.watch.polyak,
        "logged": runs.logged(trainer, "loss"),
        "x": x,
        "held": held(trainer.model),
        "saved": same(load_file(folder / "checkpoint-4" / "model.safetensors"), x),
    }
    dist.barrier()
    if owner is not None:
        owner.cleanup()
    return found


def accelerate(rank: int, world: int) -> dict[str, Any]:
    as_launched(rank, world)
    if not importlib.util.find_spec("accelerate"):
        return {}
    from accelerate import Accelerator

    from sfplus_kernels.integrations.accelerate import attach

    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = net()
    optimizer = plus(model.parameters())
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    attach(accelerator, optimizer, wrapped)
    watch = Watch(unwrap(optimizer))
    data = Regression()
    wrapped.train()
    for k in range(2 * STEPS):
        index = torch.arange(8 * k, 8 * k + 8)[rank::world]
        with accelerator.accumulate(wrapped):
            loss = nn.functional.cross_entropy(wrapped(data.x[index]), data.y[index])
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.get_state_dict(wrapped)  # a save at each micro-batch, on all ranks
    return {"losses": watch.losses, "norms": watch.norms, "held": held(model)}


def lightning(rank: int, world: int) -> dict[str, Any]:
    as_launched(rank, world)
    if not importlib.util.find_spec("lightning"):
        return {}
    import lightning.pytorch as pl
    import lightning_runs as runs
    from lightning.pytorch.callbacks import ModelCheckpoint

    from sfplus_kernels.integrations.lightning import ScheduleFreeCallback

    folder, owner = shared_folder(rank)
    module, watcher = runs.Module(), runs.Watcher()
    saver = ModelCheckpoint(folder / "steps", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=pl.strategies.DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
        callbacks=[ScheduleFreeCallback(), watcher, saver],
        max_epochs=1,
        accumulate_grad_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=0.3,
        num_sanity_val_steps=0,
    )
    data = Regression(40)
    shares = [
        (data.x[k : k + 8][rank::world], data.y[k : k + 8][rank::world]) for k in range(0, 40, 8)
    ]
    loader = torch.utils.data.DataLoader(shares, batch_size=None)
    trainer.fit(module, loader, loader)
    path = next((folder / "steps").glob("*step=3*"))
    found = {
        "losses": watcher.watch.losses,
        "polyak": watcher.watch.polyak,
        "held": held(module),
        "saved": same(torch.load(path)["state_dict"], iterate(module, watcher.optimizer)),
        "at_x": module.at_x,
    }
    dist.barrier()
    if owner is not None:
        owner.cleanup()
    return found


def transformers_with_deepspeed(rank: int, world: int) -> dict[str, Any]:
    """ZeRO-1 below the Trainer: the loss, the norm, and that x is evaluated and saved."""
    as_launched(rank, world)
    if not (importlib.util.find_spec("transformers") and importlib.util.find_spec("deepspeed")):
        return {}
    import deepspeed_worker  # noqa: F401  no operators of DeepSpeed's own
    import transformers_runs as runs
    from safetensors.torch import load_file

    folder, owner = shared_folder(rank)
    evaluated = []

    class OneGroup(AdamCScheduleFreePlus):
        """The Trainer makes two groups, and takes no function for a class."""

        def __init__(self, params: Any, **keywords: Any) -> None:
            super().__init__([p for group in params for p in group["params"]], **keywords)

    class Evaluations(runs.Watcher):
        def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            evaluated.append(held(model))

    watcher = Evaluations()
    trainer = runs.make(
        folder,
        optimizer=(OneGroup, {"lr": 0.1, "weight_decay": 5.0}),
        callbacks=[watcher],
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        max_grad_norm=0.3,
        train_sampling_strategy="sequential",
        deepspeed={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    inner = []
    watcher.on_train_begin = lambda *a, **k: inner.append(unwrap(k["optimizer"]))
    watcher.on_step_begin = lambda *a, **k: None
    step = []
    trainer.add_callback(_AfterSteps(step, lambda: unwrap(trainer.optimizer).metrics()))
    trainer.train()
    file = load_file(folder / "checkpoint-2" / "model.safetensors")
    found = {
        "losses": [metrics["function_value"] for metrics in step],
        "norms": [metrics["grad_norm"] for metrics in step],
        "polyak": [metrics["polyak_lr"] for metrics in step],
        "logged": runs.logged(trainer, "loss"),
        "evaluated": evaluated[-1],
        "file": {name: file[name] for name in evaluated[-1]},
    }
    dist.barrier()
    if owner is not None:
        owner.cleanup()
    return found


def _AfterSteps(found: list[Any], ask: Any) -> Any:
    from transformers import TrainerCallback

    class AfterSteps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            found.append(ask())

    return AfterSteps()


SCENARIOS = [accelerate, transformers, lightning, transformers_with_deepspeed]

for library in ("deepspeed", "transformers", "accelerate", "lightning"):  # once, before the fork
    if importlib.util.find_spec(library):
        importlib.import_module(library)
