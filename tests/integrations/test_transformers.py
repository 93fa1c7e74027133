"""Hugging Face Trainer, TRL and PEFT, with ScheduleFreeTrainer and without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import Watch, equal, held, iterate, needs, same
from torch import Tensor, nn

needs("transformers", "accelerate")

import schedulefree
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SFPlusWarning
from sfplus_kernels.integrations.transformers import ScheduleFreeTrainer, ScheduleFreeTrainerMixin

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]

PLUS = (AdamCScheduleFreePlus, {"lr": 0.1})


class Tokens(torch.utils.data.Dataset):
    """Sequences of fixed random tokens with uneven numbers of labels."""

    def __init__(self, size: int = 24) -> None:
        generator = torch.Generator().manual_seed(3)
        self.ids = torch.randint(50, (size, 9), generator=generator)
        self.labels = self.ids.clone()
        for row in range(size):
            self.labels[row, 9 - row % 5 :] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def make(
    folder: Path,
    trainer_class: Any = ScheduleFreeTrainer,
    optimizer: Any = PLUS,
    model: nn.Module | None = None,
    callbacks: Any = None,
    **arguments: Any,
) -> Any:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
        "weight_decay": 5.0,
        "seed": 1,
    }
    return trainer_class(
        model=model or gpt2(),
        args=TrainingArguments(**defaults | arguments),
        train_dataset=Tokens(),
        eval_dataset=Tokens(4),
        optimizer_cls_and_kwargs=optimizer,
        callbacks=callbacks,
    )


class Watcher(TrainerCallback):
    """Notes the figures of each step, and x at each save."""

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
        self.watch = Watch(optimizer.optimizer)

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
        self.optimizer = optimizer.optimizer


def run(folder: Path, *arguments: Any, resume: str | None = None, **keywords: Any) -> Any:
    watcher = Watcher()
    trainer = make(folder, *arguments, callbacks=[watcher], **keywords)
    trainer.train(resume_from_checkpoint=resume)
    trainer.watch, trainer.inner = watcher.watch, watcher.optimizer
    return trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


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


SAVES = {
    "steps": {"save_strategy": "steps", "save_steps": 3, "max_steps": 3},
    "epoch": {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1},
    "evaluated elsewhere": {
        "save_strategy": "steps",
        "save_steps": 3,
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
    "best": {
        "save_strategy": "best",
        "metric_for_best_model": "eval_loss",
        "eval_strategy": "steps",
        "eval_steps": 3,
        "max_steps": 3,
    },
}


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


def test_trl(tmp_path: Path) -> None:
    """The mixin in front of SFTTrainer."""
    needs("trl", "datasets")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Both(ScheduleFreeTrainerMixin, SFTTrainer):
        pass

    tokens = Tokens()
    rows = [{"input_ids": row.tolist()} for row in tokens.ids]
    watcher = Watcher()
    trainer = Both(
        gpt2(),
        args=SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=3,
            lr_scheduler_type="constant",
            save_strategy="steps",
            save_steps=3,
            report_to=[],
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            eos_token=None,
        ),
        train_dataset=Dataset.from_list(rows),
        optimizer_cls_and_kwargs=PLUS,
        callbacks=[watcher],
        processing_class=_tokenizer(),
    )
    trainer.train()
    assert watcher.watch.losses == pytest.approx(logged(trainer, "loss"), rel=1e-4)
    (folder,) = tmp_path.glob("checkpoint-*")
    x = iterate(trainer.model, watcher.optimizer)
    assert same(load_file(folder / "model.safetensors"), x)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{number}": number for number in range(50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t1"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t0")


def test_peft(tmp_path: Path) -> None:
    """The adapter's file holds x."""
    needs("peft")
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    trainer = run(tmp_path, model=model, **SAVES["steps"])
    (folder,) = tmp_path.glob("checkpoint-*")
    x = iterate(model, trainer.inner)
    file = load_file(folder / "adapter_model.safetensors")
    assert len(file) == len(x)
    assert same(file, {name.replace(".default", ""): value for name, value in x.items()})


def test_compiled(tmp_path: Path) -> None:
    plain = run(tmp_path / "a")
    compiled = run(tmp_path / "b", torch_compile=True, torch_compile_backend="aot_eager")
    assert compiled.watch.losses == pytest.approx(plain.watch.losses, rel=1e-5)
