"""Training and evaluation: the same weights, batches and number of steps for each optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from common import Interrupt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from digits_parts.data import Digits, epoch_batches, load
from digits_parts.model import make_model
from digits_parts.optimizers import Method, OptimizerName
from digits_parts.settings import Settings

BATCH_OF_STATISTICS = 256  # images in a batch of those that recompute BatchNorm's statistics


class Line(NamedTuple):
    """The held-out images as seen after one epoch."""

    optimizer: str
    seed: int
    epoch: int
    accuracy: float  # between 0 and 1
    loss: float  # mean cross-entropy in nats
    accuracy_old_statistics: float  # the same weights with the statistics gathered while training


def train_all(settings: Settings, interrupt: Interrupt) -> list[Line] | None:
    """Train with each optimizer from each seed; None if Ctrl-C asked to stop."""
    digits = load(settings.held_out)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    lines = []
    with Progress(*columns) as progress:
        for name in settings.optimizers:
            task = progress.add_task(name, total=settings.epochs * len(settings.seeds), status="")
            for seed in settings.seeds:
                for line in train(name, seed, digits, settings):
                    lines.append(line)
                    status = f"epochs, seed {seed}: accuracy {line.accuracy:.1%}"
                    progress.update(task, advance=1, status=status)
                    if interrupt.requested:
                        return None
    return lines


def train(name: OptimizerName, seed: int, digits: Digits, settings: Settings) -> Iterator[Line]:
    """One line after each epoch."""
    model = make_model(seed)
    count, size = len(digits.train_labels), settings.batch
    steps = settings.epochs * (count // size)
    method = Method(name, model.parameters(), steps, settings.lr_factor, settings.backend)
    # The only source of chance beside the first weights, and the same for all: the order of the images.
    generator = Generator().manual_seed(seed)
    for epoch in range(1, settings.epochs + 1):
        model.train()
        for batch in epoch_batches(count, size, generator):
            loss = F.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch])
            method.optimizer.zero_grad()
            loss.backward()
            method.step()
        yield Line(name, seed, epoch, *evaluate(model, method, digits))


def evaluate(model: nn.Module, method: Method, digits: Digits) -> tuple[float, float, float]:
    """Accuracy, loss, and the accuracy before BatchNorm's statistics were recomputed.

    While training, BatchNorm gathers the mean and variance of its inputs as the weights y produce them.
    x are other weights, so their statistics are others: one pass over the training images finds them.
    This is the recipe for any Schedule-Free optimizer. SGD gets it too, so that all are treated alike.
    """
    with method.averaged():
        _, before = loss_and_accuracy(model, digits)
        update_bn(digits.train_images.split(BATCH_OF_STATISTICS), model)
        loss, accuracy = loss_and_accuracy(model, digits)
    return accuracy, loss, before


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, digits: Digits) -> tuple[float, float]:
    """Of the held-out images, at the weights and statistics that the model has now."""
    model.eval()
    logits = model(digits.held_out_images)
    correct = logits.argmax(dim=1) == digits.held_out_labels
    return F.cross_entropy(logits, digits.held_out_labels).item(), correct.float().mean().item()
