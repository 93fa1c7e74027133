"""Lightning's Trainer with ScheduleFreeCallback and without: loss, clipping, manual optimization, logs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import held, iterate, needs, same
from torch import nn

needs("lightning")

import lightning
import schedulefree
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning_runs import Module, TrainOnly, fit

from sfplus_kernels import report_loss

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


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
