"""Short runs of Lightning's Trainer, for the tests of it."""

from pathlib import Path
from typing import Any

import torch
from libraries import Regression, Watch, held, iterate, needs, net, same
from torch import Tensor, nn

needs("lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree
from sfplus_kernels.integrations.lightning import ScheduleFreeCallback


def plus(params: Any) -> AdamCScheduleFreePlus:
    return AdamCScheduleFreePlus(params, lr=0.1, weight_decay=5.0)


def adamw(params: Any) -> AdamWScheduleFree:
    return AdamWScheduleFree(params, lr=0.05)


class Module(pl.LightningModule):
    """As most are written: its own forward is never called."""

    def __init__(self, maker: Any = plus, seed: int = 0) -> None:
        super().__init__()
        self.net = net(seed)
        self.maker = maker
        self.parts: list[float] = []  # the loss of each micro-batch
        self.at_x: list[bool] = []  # whether each validation batch saw x

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.parts.append(float(loss))
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        inner = self.trainer.optimizers[0]
        self.at_x.append(same(held(self), iterate(self, inner)))
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self.maker(self.net.parameters())


class Watcher(Callback):
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.optimizer = trainer.optimizers[0]
        self.watch = Watch(self.optimizer)


class TrainOnly(Callback):
    """What one writes without the adapter."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        trainer.optimizers[0].train()

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        trainer.optimizers[0].eval()


def fit(
    folder: Path,
    module: Module,
    *callbacks: Any,
    adapter: bool = True,
    ckpt_path: str | None = None,
    size: int = 40,
    **arguments: Any,
) -> Any:
    watcher = Watcher()
    mine = [ScheduleFreeCallback()] if adapter else []
    defaults: dict[str, Any] = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[*mine, watcher, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        **defaults | arguments,
    )
    loader = torch.utils.data.DataLoader(Regression(size), batch_size=8)
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    trainer.watch, trainer.inner = watcher.watch, watcher.optimizer
    return trainer
