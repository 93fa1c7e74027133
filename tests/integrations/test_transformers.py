"""Hugging Face Trainer, with ScheduleFreeTrainer and without it: loss, clipping, schedules, logs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import needs

needs("transformers", "accelerate")

import schedulefree
from safetensors.torch import load_file
from transformers import Trainer
from transformers_runs import gpt2, logged, make, run

from sfplus_kernels import AdamWScheduleFree, SFPlusWarning
from sfplus_kernels.integrations.transformers import ScheduleFreeTrainer

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loss(tmp_path: Path, accumulation: int) -> None:
    """That of each step is what the trainer logs, with uneven numbers of labels and a short last window."""
    # 24 sequences in batches of 2 and windows of 5: the third window of an epoch has two batches
    steps = {1: 4, 3: 5}[accumulation]
    trainer = run(tmp_path, gradient_accumulation_steps={1: 1, 3: 5}[accumulation], max_steps=steps)
    assert trainer.watch.losses == pytest.approx(logged(trainer, "loss"), rel=1e-5)
    assert trainer.watch.norms == pytest.approx(logged(trainer, "grad_norm"), rel=1e-5)


def test_plain_use_has_no_loss(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step.. got no loss"):
        make(tmp_path, Trainer).train()


def test_clipping(tmp_path: Path) -> None:
    """The trainer clips at 1.0 unless told otherwise; gamma stays that of the unclipped gradients."""
    free = run(tmp_path, max_grad_norm=0.0, max_steps=1)
    clipped = run(tmp_path, max_grad_norm=0.1, max_steps=1)
    assert free.watch.norms[0] > 0.2
    assert clipped.watch.polyak == pytest.approx(free.watch.polyak)
    assert clipped.watch.norms == pytest.approx(free.watch.norms)
    assert logged(clipped, "grad_norm") == pytest.approx(logged(free, "grad_norm"))
    assert clipped.inner.param_groups[0]["max_grad_norm"] == 0.1
    clipped.optimizer = clipped.lr_scheduler = None  # as a search for hyperparameters does
    clipped.train()
    assert clipped.optimizer.param_groups[0]["max_grad_norm"] == 0.1

    class OnlyTheLoss(ScheduleFreeTrainer):
        """As one would write it by hand: clipping stays with the trainer."""

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            norm = self.args.max_grad_norm
            result = super().training_step(*args, **kwargs)
            for group in self.optimizer.param_groups:
                group["max_grad_norm"] = None
            self.args.max_grad_norm = norm
            return result

    plain = run(tmp_path, OnlyTheLoss, max_grad_norm=0.1, max_steps=1)
    assert plain.watch.polyak[0] > 2 * free.watch.polyak[0]


def test_schedules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lr_scheduler_type is 'linear'.*constant_with_warmup"):
        make(tmp_path, lr_scheduler_type="linear").train()
    trainer = make(tmp_path, lr_scheduler_type="constant_with_warmup", warmup_steps=2, max_steps=3)
    trainer.train()
    # the first step has a learning rate of 0, and eps in its place
    assert [round(lr, 3) for lr in logged(trainer, "learning_rate")] == [0.0, 0.05, 0.1]
    assert logged(trainer, "gamma")[0] < 1e-6 < logged(trainer, "gamma")[1]


def test_plain_use_is_warned_of_its_schedule(tmp_path: Path) -> None:
    """Once."""
    trainer = make(tmp_path, Trainer, (AdamWScheduleFree, {"lr": 0.02}), lr_scheduler_type="linear")
    with pytest.warns(SFPlusWarning) as given:
        trainer.train()
    texts = [str(w.message) for w in given if isinstance(w.message, SFPlusWarning)]
    assert len([text for text in texts if "[scheduler]" in text]) == 1


def test_logs(tmp_path: Path) -> None:
    trainer = run(tmp_path)
    metrics = trainer.inner.metrics()
    assert len(logged(trainer, "gamma")) == 4
    assert logged(trainer, "gamma")[-1] == metrics["scheduled_lr"][0]
    assert logged(trainer, "averaging_weight")[-1] == metrics["ckp1"][0]
    assert logged(trainer, "skipped_steps")[-1] == 0
    norm = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).norm()
    assert logged(trainer, "weight_norm")[-1] == pytest.approx(float(norm), rel=1e-5)


def test_tensorboard(tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, report_to=["tensorboard"])
    (file,) = tmp_path.rglob("events.out*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    names = {"train/gamma", "train/averaging_weight", "train/skipped_steps", "train/weight_norm"}
    assert names < set(events.Tags()["scalars"])


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network."""
    needs("wandb")
    for name, value in {"MODE": "offline", "ERROR_REPORTING": "false", "DIR": tmp_path}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    import wandb

    trainer = run(tmp_path, report_to=["wandb"], max_steps=2)
    summary = dict(wandb.run.summary)
    wandb.finish()
    for name in ("gamma", "averaging_weight", "skipped_steps", "grad_norm", "weight_norm"):
        assert summary[f"train/{name}"] == logged(trainer, name)[-1]


def test_the_same_weights_as_upstream(tmp_path: Path) -> None:
    """schedulefree under the same trainer, with the same schedule: its weights at the end, x."""
    arguments: dict[str, Any] = {"lr": 0.02, "betas": (0.9, 0.95), "warmup_steps": 2}
    keywords = {"max_grad_norm": 0.0, "weight_decay": 0.1, "gradient_accumulation_steps": 2}
    saved = []
    for trainer_class, optimizer in (
        (ScheduleFreeTrainer, AdamWScheduleFree),
        (Trainer, schedulefree.AdamWScheduleFree),
    ):
        trainer = make(
            tmp_path / optimizer.__module__,
            trainer_class,
            (optimizer, arguments),
            # the keys' biases have a gradient of 0 but for rounding, which Adam would blow up
            gpt2().double(),
            **keywords,
            save_strategy="steps",
            save_steps=6,
            eval_strategy="steps",  # else the plain trainer saves y
            eval_steps=6,
            max_steps=6,
        )
        trainer.train()
        (folder,) = (tmp_path / optimizer.__module__).glob("checkpoint-*")
        saved.append(load_file(folder / "model.safetensors"))
    start = gpt2().state_dict()
    for name, value in saved[0].items():
        torch.testing.assert_close(value, saved[1][name], rtol=1e-7, atol=1e-9)
        assert not torch.allclose(value.float(), start[name], atol=1e-4)


def test_compiled(tmp_path: Path) -> None:
    plain = run(tmp_path / "a")
    compiled = run(tmp_path / "b", torch_compile=True, torch_compile_backend="aot_eager")
    assert compiled.watch.losses == pytest.approx(plain.watch.losses, rel=1e-5)
