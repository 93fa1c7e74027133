"""Short runs of Hugging Face's Trainer, for the tests of it."""

from pathlib import Path
from typing import Any

import torch
from libraries import Watch, needs
from torch import Tensor, nn

needs("transformers", "accelerate")

from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.integrations.transformers import ScheduleFreeTrainer

PLUS = (AdamCScheduleFreePlus, {"lr": 0.1})
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
