"""Small problems of different kinds, each trained in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from digits_parts.data import epoch_batches, load
from digits_parts.model import make_model
from lm.data import Corpus, windows
from lm.model import GPT, mean_loss
from torch import Generator, Tensor, nn
from torch.nn import functional as F

CONTEXT = 64


@dataclass
class Case:
    """A model and its loss; ``loss(k)`` is that of batch k, ``evaluate()`` what a user wants to be small."""

    model: nn.Module
    steps: int
    loss: Callable[[int], Tensor]
    evaluate: Callable[[], Tensor]

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]


def image_case(
    model: nn.Module,
    steps: int,
    seed: int,
    labels: slice = slice(0, 10),
    loss: Callable = F.cross_entropy,
) -> Case:
    """The digits whose label is in ``labels``; the label counts from its start."""
    digits = load()
    first, last = labels.start, labels.stop
    kept = (digits.train_labels >= first) & (digits.train_labels < last)
    held = (digits.held_out_labels >= first) & (digits.held_out_labels < last)
    images, targets = digits.train_images[kept], digits.train_labels[kept] - first
    held_images, held_targets = digits.held_out_images[held], digits.held_out_labels[held] - first
    generator = Generator().manual_seed(seed)
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += epoch_batches(len(images), 64, generator)

    def evaluate() -> Tensor:
        gather_statistics(model, images)
        model.eval()
        result = loss(model(held_images), held_targets)
        model.train()
        return result

    def of_batch(k: int) -> Tensor:
        return loss(model(images[batches[k]]), targets[batches[k]])

    return Case(model, steps, of_batch, evaluate)


def gather_statistics(model: nn.Module, images: Tensor) -> None:
    """BatchNorm's statistics at the weights that are evaluated, from all training images."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model whose first weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def mlp(seed: int) -> Case:
    """Digits, one hidden layer of 32."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))  # noqa: E731
    return image_case(seeded(make, seed), 300, seed)


def convolutions(seed: int) -> Case:
    """Digits, three convolutions with BatchNorm."""
    return image_case(make_model(seed), 300, seed)


def autoencoder(seed: int) -> Case:
    """Digits through 16 numbers; a squared error, so its loss is small and does not go to 0."""
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 16),
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Linear(32, 64),
    )
    case = image_case(seeded(make, seed), 400, seed)
    digits = load()
    generator = Generator().manual_seed(seed)
    order = [
        torch.randint(len(digits.train_images), (64,), generator=generator)
        for _ in range(case.steps)
    ]

    def of(images: Tensor) -> Tensor:
        return F.mse_loss(case.model(images), images.flatten(1))

    case.loss = lambda k: of(digits.train_images[order[k]])
    case.evaluate = lambda: of(digits.held_out_images)
    return case


def frozen_backbone(seed: int) -> Case:
    """The convolutions, trained on 0 to 4 and kept; a new last layer learns 5 to 9."""
    model = make_model(seed)
    before = image_case(model, 150, seed, slice(0, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for k in range(before.steps):
        before.loss(k).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)
    model[-1] = seeded(lambda: nn.Linear(32, 5), seed)
    return image_case(model, 200, seed, slice(5, 10))


def gpt(width: int, layers: int, steps: int, seed: int) -> Case:
    """Bytes of the standard library."""
    corpus = Corpus.load()
    model = GPT(width, layers, CONTEXT, seed)
    generator = Generator().manual_seed(seed)
    held = windows(corpus.validation, 512, CONTEXT, Generator().manual_seed(0))

    def of_batch(k: int) -> Tensor:
        return mean_loss(model, *windows(corpus.train, 32, CONTEXT, generator))

    return Case(model, steps, of_batch, lambda: mean_loss(model, *held))


class Point(nn.Module):
    """Some numbers and nothing else."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start)


def quadratic(seed: int) -> Case:
    """Ten parameters, curvatures from 1 to 100, no noise."""
    model = Point(torch.randn(10, generator=Generator().manual_seed(seed)))
    curvature = torch.logspace(0, 2, 10)
    of = lambda: 0.5 * (curvature * model.w**2).sum()  # noqa: E731
    return Case(model, 200, lambda k: of(), of)


def regression(seed: int) -> Case:
    """Fifty parameters by noisy squares; the loss ends at 0.25, the noise's variance, not at 0."""
    generator = Generator().manual_seed(seed)
    true = torch.randn(50, generator=generator)
    model = Point(torch.zeros(50))

    def of(count: int, generator: Generator) -> Tensor:
        x = torch.randn(count, 50, generator=generator)
        y = x @ true + 0.5 * torch.randn(count, generator=generator)
        return ((x @ model.w - y) ** 2).mean()

    return Case(
        model, 300, lambda k: of(32, generator), lambda: of(4096, Generator().manual_seed(99))
    )


CASES: dict[str, Callable[[int], Case]] = {
    "mlp": mlp,
    "convolutions": convolutions,
    "autoencoder": autoencoder,
    "frozen backbone": frozen_backbone,
    "quadratic": quadratic,
    "regression": regression,
    "gpt 31k": lambda seed: gpt(32, 1, 400, seed),
    "gpt 135k": lambda seed: gpt(64, 2, 300, seed),
}
