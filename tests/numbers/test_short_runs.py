"""What a short run makes of state in few bits: nothing that is more than another rounding makes of it.

It would say so of 8 bits of e, too, which fail in the long run: test_long_averages.py.
"""

import argparse
import difflib
import functools
import inspect
import statistics
import textwrap
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfplus_kernels import AdamCScheduleFreePlus

SEEDS = range(4)
FORMATS = ["16bit", "8bit"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def pictures() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits."""
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(bunch.images).float().flatten(1) / 8 - 1
    return images[order], torch.from_numpy(bunch.target).long()[order]


@functools.cache
def text() -> Tensor:
    """Bytes of a few files of the standard library."""
    source = "".join(map(inspect.getsource, (argparse, difflib, inspect, textwrap)))
    return torch.tensor(list(source.encode()))


def perceptron(dtype: torch.dtype) -> nn.Module:
    layers = (nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    return nn.Sequential(*layers).to(dtype)


class Transformer(nn.Module):
    """Over bytes."""

    def __init__(self, width: int = 48, context: int = 64) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(128, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 128)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.token(x) + self.place.weight
        return self.head(self.blocks(hidden, mask=self.mask, is_causal=True)).flatten(0, 1)  # type: ignore[no-any-return]


def digits_loss(state_format: str, dtype: torch.dtype, seed: int, steps: int) -> float:
    """Held out, at x."""
    torch.manual_seed(seed)
    model = perceptron(dtype)
    x, target = pictures()
    generator = torch.Generator().manual_seed(seed)
    optimizer = AdamCScheduleFreePlus(
        model.parameters(),
        lr=0.3,
        polyak_beta=0.9,
        backend="cpu",
        state_format=state_format,
        rounding_seed=seed,
    )
    optimizer.train()
    for _ in range(steps):
        batch = torch.randint(1200, (64,), generator=generator)
        noisy = x[batch] + torch.randn(64, 64, generator=generator)
        loss = F.cross_entropy(model(noisy.to(dtype)).float(), target[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    with torch.no_grad(), optimizer.averaged():
        held_out = x[1200:].repeat(8, 1) + torch.randn(8 * 597, 64, generator=generator)
        found = model(held_out.to(dtype)).float()
        return F.cross_entropy(found, target[1200:].repeat(8)).item()


def text_loss(state_format: str, dtype: torch.dtype, seed: int, steps: int) -> float:
    """Held out, at x."""
    torch.manual_seed(seed)
    model = Transformer().to(dtype)
    generator = torch.Generator().manual_seed(seed)
    optimizer = AdamCScheduleFreePlus(
        model.parameters(),
        lr=0.1,
        polyak_beta=0.9,
        weight_decay=20.0,
        sf_beta1_max=0.965,
        sf_beta1_anneal_steps=steps,
        backend="cpu",
        state_format=state_format,
        rounding_seed=seed,
    )
    cut = len(text()) * 9 // 10

    def batch(first: int, last: int, count: int) -> Tensor:
        places = torch.randint(first, last - 65, (count, 1), generator=generator)
        return text()[places + torch.arange(65)]

    def loss_of(b: Tensor) -> Tensor:
        return F.cross_entropy(model(b[:, :-1]).float(), b[:, 1:].flatten())

    optimizer.train()
    for _ in range(steps):
        loss = loss_of(batch(0, cut, 12))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    with torch.no_grad(), optimizer.averaged():
        return loss_of(batch(cut, len(text()), 128)).item()


RUNS = {"digits": (digits_loss, 1500), "text": (text_loss, 600)}


@functools.cache
def losses(run: str, state_format: str, dtype: torch.dtype) -> list[float]:
    loss, steps = RUNS[run]
    return [loss(state_format, dtype, seed, steps) for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "dtype"),
    [("digits", torch.float32), ("digits", torch.bfloat16), ("text", torch.float32)],
)
@pytest.mark.parametrize("state_format", FORMATS)
def test_a_short_run_is_that_of_float32(state_format: str, run: str, dtype: torch.dtype) -> None:
    """To two standard errors of the difference, or, as four seeds hardly tell these, 0.2 % of the loss."""
    full, small = losses(run, "float32", dtype), losses(run, state_format, dtype)
    differences = [a - b for a, b in zip(small, full, strict=True)]
    mean, loss = statistics.mean(differences), statistics.mean(full)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    assert small != full
    assert abs(mean) <= max(2 * error, 0.002 * loss), differences
    assert abs(mean) < 0.005 * loss
    assert loss < (0.8 if run == "digits" else 3.0)  # it learns


@pytest.mark.parametrize("state_format", FORMATS)
def test_the_beginning_of_a_run(state_format: str) -> None:
    """150 steps of the digits, in bfloat16: what the longer runs do, in a second."""
    full, small = (
        [digits_loss(f, torch.bfloat16, seed, 150) for seed in (0, 1)]
        for f in ("float32", state_format)
    )
    assert small != full
    for a, b in zip(small, full, strict=True):
        assert a == pytest.approx(b, rel=0.02)
