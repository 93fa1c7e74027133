"""The parts of examples/train_lm.py that need no run: the text, the optimizers."""

import torch
from lm import data
from lm.optimizers import make_method
from lm.settings import OptimizerName, Settings


def test_validation_files_are_not_trained_on() -> None:
    found = data.source_files()
    train_files, validation_files = data.split(found)
    assert set(train_files).isdisjoint(validation_files)
    assert set(train_files) | set(validation_files) == set(found)
    assert len(validation_files) >= 5
    assert not any(data.SKIPPED & set(path.parts[-3:]) for path in found)
    assert found == data.source_files()


def test_windows() -> None:
    text = torch.arange(40, dtype=torch.uint8)
    tokens, targets = data.windows(text, 200, 8, torch.Generator().manual_seed(0))
    assert tokens.shape == targets.shape == (200, 8)
    assert torch.equal(targets, tokens + 1)
    assert tokens[:, 0].min() == 0
    assert targets.max() == 39  # the last byte is reached and not passed


def test_make_method_names() -> None:
    settings = Settings(
        optimizers=tuple(OptimizerName),
        backend="eager",
        device="cpu",
        steps=10,
        batch=1,
        seed=0,
        lr_factor=1.0,
        dim=32,
        layers=1,
        context=8,
        eval_every=1,
        log_every=1,
        eval_batches=1,
        threads=1,
        corpus="",
    )
    parameter = torch.nn.Parameter(torch.ones(3))
    names = [
        type(make_method(name, [parameter], settings).optimizer).__name__ for name in OptimizerName
    ]
    assert names == ["AdamCScheduleFreePlus", "AdamW", "AdamWScheduleFree"]
