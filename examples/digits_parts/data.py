"""The images: scikit-learn's handwritten digits, 1,797 of 8 by 8 pixels, which come with the package."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor

TEST_SHARE = 0.3  # of all images
VALIDATION_SHARE = 0.2  # of the others


class HeldOut(StrEnum):
    """What the model is evaluated on."""

    TEST = "test"
    VALIDATION = "validation"  # a part of the training images, for choosing hyperparameters


class Digits(NamedTuple):
    """float32 images (n, 1, 8, 8) between 0 and 1, and int64 labels (n,)."""

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load(held_out: HeldOut = HeldOut.TEST) -> Digits:
    """The images to train on and the others; the same in every run, whatever its seed."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16).unsqueeze_(1)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    test_size = round(TEST_SHARE * len(order))
    test, train = order[:test_size], order[test_size:]
    if held_out is HeldOut.VALIDATION:
        size = round(VALIDATION_SHARE * len(train))
        test, train = train[:size], train[size:]
    return Digits(images[train], labels[train], images[test], labels[test])


def epoch_batches(count: int, size: int, generator: Generator) -> list[Tensor]:
    """Indices of the batches of an epoch in a random order; what does not fill the last is left out."""
    order = torch.randperm(count, generator=generator)
    return list(order[: count - count % size].split(size))
