"""Lightning's Trainer and Fabric: ScheduleFreeCallback, follow(), and what happens without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import Regression, Watch, batches, equal, held, iterate, needs, net, same
from torch import Tensor, nn

needs("lightning")

import lightning
import lightning.pytorch as pl
import schedulefree
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, follow, report_loss
from sfplus_kernels.integrations.lightning import ScheduleFreeCallback

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


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


def windows(module: Module, accumulation: int) -> list[float]:
    parts = module.parts
    return [
        sum(parts[k : k + accumulation]) / accumulation for k in range(0, len(parts), accumulation)
    ]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loss(tmp_path: Path, accumulation: int) -> None:
    """Five batches: with windows of three the second one is short, and divided by three all the same."""
    trainer = fit(tmp_path, module := Module(), accumulate_grad_batches=accumulation)
    assert len(trainer.watch.losses) == {1: 5, 3: 2}[accumulation]
    assert trainer.watch.losses == pytest.approx(windows(module, accumulation), rel=1e-6)


class TrainOnly(Callback):
    """What one writes without the adapter."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        trainer.optimizers[0].train()

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        trainer.optimizers[0].eval()


def test_plain_use_has_the_last_loss_over_the_number(tmp_path: Path) -> None:
    trainer = fit(
        tmp_path, module := Module(), TrainOnly(), adapter=False, accumulate_grad_batches=3
    )
    assert trainer.watch.losses == pytest.approx([module.parts[2] / 3, module.parts[4] / 3])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradient_scaler_and_clipping(tmp_path: Path, accumulation: int) -> None:
    def scaled(**arguments: Any) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        # on a CPU the half precision itself is of no interest
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        return fit(
            tmp_path,
            Module(),
            plugins=[plugin],
            accumulate_grad_batches=accumulation,
            **arguments,
        )

    plain = fit(tmp_path, Module(), accumulate_grad_batches=accumulation)
    trainer = scaled()
    assert trainer.watch.losses == pytest.approx(plain.watch.losses, rel=1e-5)
    assert trainer.watch.norms == pytest.approx(plain.watch.norms, rel=1e-5)
    clipped = scaled(gradient_clip_val=0.1)
    assert clipped.watch.polyak[0] == pytest.approx(plain.watch.polyak[0], rel=1e-5)
    assert clipped.inner.param_groups[0]["max_grad_norm"] == 0.1


def test_clipping(tmp_path: Path) -> None:
    free = fit(tmp_path, Module())
    clipped = fit(tmp_path, Module(), gradient_clip_val=0.1)
    assert clipped.watch.polyak[0] == pytest.approx(free.watch.polyak[0])
    assert clipped.watch.norms[0] == pytest.approx(free.watch.norms[0])
    assert clipped.gradient_clip_val == 0.1  # again, for the next fit
    plain = fit(tmp_path, Module(), TrainOnly(), adapter=False, gradient_clip_val=0.1)
    assert plain.watch.polyak[0] > 2 * free.watch.polyak[0]


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("maker", [plus, adamw])
def test_saves_x(tmp_path: Path, weights_only: bool, maker: Any) -> None:
    """After a number of steps, at the end of an epoch, the last, the best."""
    found: list[Any] = []

    class Iterates(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            found.append((iterate(module, trainer.optimizers[0]), held(module)))

    savers = [
        ModelCheckpoint(
            tmp_path / "steps",
            every_n_train_steps=2,
            save_top_k=-1,
            save_weights_only=weights_only,
            filename="{step}",
            auto_insert_metric_name=False,
        ),
        ModelCheckpoint(tmp_path / "best", monitor="val", save_weights_only=weights_only),
        ModelCheckpoint(
            tmp_path / "end",
            save_on_train_epoch_end=True,
            save_last=True,
            save_weights_only=weights_only,
        ),
    ]
    module = Module(maker)
    trainer = fit(tmp_path, module, Iterates(), *savers, enable_checkpointing=True)
    files = dict.fromkeys(tmp_path.glob("[be]*/*.ckpt"), 5)
    files |= {tmp_path / "steps" / f"{k}.ckpt": k for k in (2, 4)}
    assert len(files) == 5
    for path, step in files.items():
        saved = torch.load(path, weights_only=True)
        x, y = found[step - 1]
        assert same(saved["state_dict"], x)
        assert not same(saved["state_dict"], y)
        assert ("optimizer_states" in saved) is not weights_only
    trainer.save_checkpoint(tmp_path / "after.ckpt", weights_only=weights_only)
    assert same(torch.load(tmp_path / "after.ckpt")["state_dict"], found[-1][0])
    assert all(module.at_x)


def test_plain_use_saves_y(tmp_path: Path) -> None:
    module = Module(adamw)
    saver = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=5)
    trainer = fit(
        tmp_path,
        module,
        TrainOnly(),
        saver,
        adapter=False,
        enable_checkpointing=True,
        limit_val_batches=0,
    )
    (path,) = (tmp_path / "steps").glob("*.ckpt")
    assert same(torch.load(path)["state_dict"], iterate(module, trainer.inner, "y"))
    assert not same(torch.load(path)["state_dict"], iterate(module, trainer.inner))


def test_resume_is_exact(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "epochs", save_top_k=-1, filename="{epoch}")
    arguments = {
        "enable_checkpointing": True,
        "max_epochs": 3,
        "gradient_clip_val": 0.3,
        "accumulate_grad_batches": 2,
    }
    whole = fit(tmp_path, first := Module(), saver, **arguments)
    path = str(tmp_path / "epochs" / "epoch=1.ckpt")
    resumed = fit(tmp_path, second := Module(seed=5), ckpt_path=path, **arguments)
    assert len(resumed.watch.losses) == 3
    pairs = ((first, whole), (second, resumed))
    assert equal(*[[iterate(m, t.inner, w) for w in "xyz"] for m, t in pairs])


def test_validation_between_batches(tmp_path: Path) -> None:
    module = Module()
    fit(tmp_path, module, val_check_interval=2)
    assert len(module.at_x) > 10
    assert all(module.at_x)


class Manual(Module):
    """Manual optimization, where Lightning passes a closure that returns nothing."""

    def __init__(self, tell: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tell = tell

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.parts.append(float(loss))
        self.manual_backward(loss)
        if self.tell == "step":
            optimizer.step(loss=loss)
        else:
            if self.tell == "report":
                report_loss(optimizer, loss)
            optimizer.step()
        optimizer.zero_grad()
        assert optimizer.metrics()["k"] == index + 1  # of the wrapper


def test_manual_optimization(tmp_path: Path) -> None:
    """By the callback, by report_loss into Lightning's real wrapper, by step(loss=)."""
    for tell in ("callback", "report", "step"):
        callbacks = [] if tell == "callback" else [TrainOnly()]
        module = Manual(tell)
        trainer = fit(tmp_path, module, *callbacks, adapter=tell == "callback")
        assert trainer.watch.losses == pytest.approx(module.parts)


def test_refusals(tmp_path: Path) -> None:
    class Scheduled(Module):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(ValueError, match="returned a StepLR.*warmup_steps"):
        fit(tmp_path, Scheduled())
    for average in (StochasticWeightAveraging(swa_lrs=0.1), EMAWeightAveraging()):
        with pytest.raises(ValueError, match="would average y"):
            fit(tmp_path, Module(), average)


def test_logs(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    trainer = fit(tmp_path, Module(), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    metrics = trainer.inner.metrics()
    text = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    table = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
    logged = [row for row in table if row["gamma"]]
    assert len(logged) == 5
    assert float(logged[-1]["gamma"]) == metrics["scheduled_lr"][0]
    assert float(logged[-1]["averaging_weight"]) == metrics["ckp1"][0]
    assert float(logged[-1]["skipped_steps"]) == 0
    assert float(logged[-1]["grad_norm"]) == metrics["grad_norm"]
    assert float(logged[-1]["weight_norm"]) > 0


def test_both_packages(tmp_path: Path) -> None:
    """lightning.pytorch and pytorch_lightning have two classes of each name."""
    needs("pytorch_lightning")
    import pytorch_lightning

    from sfplus_kernels.integrations.lightning import ScheduleFreeCallback as Both

    assert issubclass(Both, pytorch_lightning.Callback)
    assert issubclass(Both, lightning.pytorch.Callback)


def test_the_same_weights_as_upstream(tmp_path: Path) -> None:
    def make(package: Any) -> Any:
        return lambda params: package.AdamWScheduleFree(
            params, lr=0.05, weight_decay=0.1, warmup_steps=2
        )

    ours, theirs = Module(make(__import__("sfplus_kernels"))), Module(make(schedulefree))
    trainer = fit(tmp_path, ours, max_epochs=2, accumulate_grad_batches=2)

    class EvalAtTheEnd(TrainOnly):
        def on_fit_end(self, trainer: Any, *_: Any) -> None:
            trainer.optimizers[0].eval()

    theirs.at_x = None  # type: ignore[assignment]
    theirs.validation_step = lambda *_: None  # type: ignore[method-assign]
    fit(tmp_path, theirs, EvalAtTheEnd(), adapter=False, max_epochs=2, accumulate_grad_batches=2)
    assert same(held(ours), iterate(ours, trainer.inner))
    for (_, p), (_, q), (_, start) in zip(
        held(ours).items(), held(theirs).items(), held(Module()).items(), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(p, start, atol=1e-3)


# -- Fabric ----------------------------------------------------------------------------------------


def test_fabric(tmp_path: Path) -> None:
    """follow() and report_loss() into the real wrapper; the wrapper's own metrics(); fabric.save."""
    fabric = Fabric(accelerator="cpu")
    model = net()
    module, wrapper = fabric.setup(model, plus(model.parameters()))
    follow(model, wrapper)
    inner = wrapper.optimizer
    watch, losses = Watch(inner), []
    for x, y in batches(8, 4):
        loss = nn.functional.cross_entropy(module(x), y)
        fabric.backward(loss)
        report_loss(wrapper, loss)
        wrapper.step()
        wrapper.zero_grad()
        losses.append(float(loss))
    assert watch.losses == pytest.approx(losses)
    assert wrapper.metrics() == inner.metrics()
    assert wrapper.metrics()["k"] == 4
    x, y = iterate(model, inner), held(model)
    with wrapper.averaged():
        assert same(held(model), x)
    assert same(held(model), y)
    assert same(wrapper.averaged_state_dict(model), x)
    fabric.save(tmp_path / "file.ckpt", {"model": module, "optimizer": wrapper})
    saved = torch.load(tmp_path / "file.ckpt", weights_only=True)
    assert same(saved["model"], x)
    assert not same(saved["model"], y)
    assert saved["optimizer"]["param_groups"][0]["k"] == 4


def test_fabric_modes_by_hand() -> None:
    """train() and eval() of the wrapper, with a beta that changes."""
    fabric = Fabric(accelerator="cpu")
    model, plain = net(), net()
    arguments = {"lr": 0.1, "sf_beta1_anneal_steps": 5}
    _, wrapper = fabric.setup(model, AdamCScheduleFreePlus(model.parameters(), **arguments))
    other = AdamCScheduleFreePlus(plain.parameters(), **arguments)
    for x, y in batches(8, 6):
        for one, optimizer in ((model, wrapper), (plain, other)):
            optimizer.train()
            loss = nn.functional.cross_entropy(one(x), y)
            loss.backward()
            report_loss(optimizer, loss)
            optimizer.step()
            optimizer.zero_grad()
            optimizer.eval()
        assert same(held(model), held(plain))
        state = wrapper.state_dict()["param_groups"][0]
        assert state["k"] == other.state_dict()["param_groups"][0]["k"]
