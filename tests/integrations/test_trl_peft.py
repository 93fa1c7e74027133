"""TRL, with the mixin in front of its trainer, and PEFT, whose adapter's file holds x."""

from pathlib import Path
from typing import Any

import pytest
from libraries import iterate, needs, same

needs("transformers", "accelerate")

from safetensors.torch import load_file
from transformers_runs import PLUS, SAVES, Tokens, Watcher, gpt2, logged, run

from sfplus_kernels.integrations.transformers import ScheduleFreeTrainerMixin

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
]


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
