"""One run: the same weights, text and settings for every format, and the loss of x on the way."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from anytime_parts.corpus import CONTEXT, Corpus, Stream
from lm.model import GPT
from torch import Tensor, nn
from torch.nn import functional as F

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus

WIDTH, LAYERS = 32, 1  # 30,816 parameters
SEQUENCES = 4  # of 64 bytes
EVALUATION_BATCH = 64  # sequences
# The best with a cap of anytime.py, but for beta1: at 0 a rounding of m would be forgotten by the next step.
SETTINGS: dict[str, Any] = {
    "lr": 1.0,
    "max_lr": 0.03,
    "betas": (0.5, 0.99),
    "r": 1.0,
    "warmup_steps": 150,
}


@dataclass(frozen=True)
class Run:
    """What decides the numbers of a run."""

    state_format: str
    dtype: str  # of the parameters
    seed: int
    steps: int = 20_000
    look: int = 1_000  # steps from one evaluation to the next


def train(run: Run, corpus: Corpus) -> dict[str, Any]:
    """Train to the end.

    Returns:
        A line for the results: by evaluation, the steps, the validation loss of x, and the mean training
        loss since the evaluation before; the elements of the state in each format.
    """
    model = GPT(WIDTH, LAYERS, CONTEXT, run.seed).to(getattr(torch, run.dtype))
    optimizer = AdamCScheduleFreePlus(
        model.parameters(), state_format=run.state_format, rounding_seed=run.seed, **SETTINGS
    )
    optimizer.train()
    stream = Stream(corpus.train, SEQUENCES, run.steps, run.seed)
    curve: dict[str, list[float]] = {"step": [], "validation_loss": [], "training_loss": []}
    total, cpu = torch.zeros((), dtype=torch.float64), time.process_time()
    for k in range(1, run.steps + 1):
        loss = mean_loss(model, *stream.batch(k - 1))
        loss.backward()
        optimizer.step(loss=loss.detach())
        optimizer.zero_grad()
        total += loss.detach()
        if k % run.look == 0:
            curve["step"].append(k)
            with optimizer.averaged():
                curve["validation_loss"].append(round(evaluate(model, corpus), 5))
            curve["training_loss"].append(round(float(total) / run.look, 5))
            total.zero_()
    return {
        **asdict(run),
        "parameters": sum(p.numel() for p in model.parameters()),
        "elements": optimizer.state_formats(),
        "bytes_per_step": SEQUENCES * CONTEXT,
        "settings": SETTINGS,
        "cpu_seconds": round(time.process_time() - cpu),
        "host": platform.machine(),
        "torch": torch.__version__,
        "version": sfplus_kernels.__version__,
        "corpus": corpus.fingerprint(),
        **curve,
    }


@torch.no_grad()
def evaluate(model: nn.Module, corpus: Corpus) -> float:
    """Validation loss, nats per byte."""
    tokens, targets = (part.split(EVALUATION_BATCH) for part in corpus.validation_windows())
    losses = [float(mean_loss(model, *pair)) for pair in zip(tokens, targets, strict=True)]
    return sum(losses) / len(losses)


def mean_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in float32, also of a model in bfloat16, whose numbers would be too coarse for a loss."""
    return F.cross_entropy(model(tokens).float().flatten(0, 1), targets.flatten())
