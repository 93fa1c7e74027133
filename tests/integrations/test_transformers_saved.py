"""Hugging Face Trainer, with ScheduleFreeTrainer and without it: what is saved, evaluated and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import equal, held, iterate, needs, same

needs("transformers", "accelerate")

from safetensors.torch import load_file
from transformers import Trainer
from transformers_runs import PLUS, SAVES, Tokens, Watcher, gpt2, make, run

from sfplus_kernels import AdamWScheduleFree

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]


@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize("optimizer", ["plus", "adamw"])
def test_saves_x(tmp_path: Path, name: str, optimizer: str) -> None:
    makers = {"plus": PLUS, "adamw": (AdamWScheduleFree, {"lr": 0.02})}
    trainer = run(tmp_path, optimizer=makers[optimizer], **SAVES[name])
    (folder,) = tmp_path.glob("checkpoint-*")
    file = load_file(folder / "model.safetensors")
    x = iterate(trainer.model, trainer.inner)
    assert same(file, x)
    assert not same(file, iterate(trainer.model, trainer.inner, "y"))
    names = torch.load(folder / "optimizer.pt")["param_groups"][0]["param_names"]
    assert names == [n for n, p in trainer.model.named_parameters() if p.ndim > 1]
    trainer.save_model(tmp_path / "end")
    assert same(load_file(tmp_path / "end" / "model.safetensors"), x)


def test_plain_use_saves_y(tmp_path: Path) -> None:
    trainer = run(tmp_path, Trainer, (AdamWScheduleFree, {"lr": 0.02}), **SAVES["steps"])
    (folder,) = tmp_path.glob("checkpoint-*")
    file = load_file(folder / "model.safetensors")
    assert same(file, iterate(trainer.model, trainer.inner, "y"))
    assert not same(file, iterate(trainer.model, trainer.inner))


def test_evaluates_x_also_when_a_callback_does(tmp_path: Path) -> None:
    seen = []

    class Sample(Watcher):
        """As those that generate text in the middle of training."""

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            model.eval()
            with torch.no_grad():
                model(Tokens().ids[:1])
            seen.append(same(held(model), iterate(model, self.optimizer)))

    trainer = make(tmp_path, callbacks=[Sample()])
    trainer.train()
    assert seen == [True] * 4


def test_resume_is_exact(tmp_path: Path) -> None:
    """With accumulation, clipping, weight decay, and evaluations at other steps than the saves."""
    arguments = {
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.3,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 7,
    }
    whole = run(tmp_path, **arguments)
    resumed = run(tmp_path, **arguments, resume=str(tmp_path / "checkpoint-3"), model=gpt2(seed=5))
    assert len(resumed.watch.losses) == 4
    assert resumed.watch.losses == whole.watch.losses[3:]
    iterates = [[iterate(t.model, t.inner, w) for w in "xyz"] for t in (whole, resumed)]
    assert equal(*iterates)


def test_load_best_model_at_end(tmp_path: Path) -> None:
    trainer = run(
        tmp_path,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    loss = trainer.evaluate()["eval_loss"]
    assert same(held(trainer.model), {n: best[n] for n, _ in trainer.model.named_parameters()})
    assert loss == pytest.approx(trainer.state.best_metric)
