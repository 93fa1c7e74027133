"""Lightning's Trainer with ScheduleFreeCallback, and without it: what is saved, validated and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import equal, held, iterate, needs, same

needs("lightning")

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_runs import Module, TrainOnly, adamw, fit, plus

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


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
