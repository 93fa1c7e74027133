"""One point: train, read off, and leave a small result file."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lm.files import replacing
from lm.model import GPT, mean_loss

from anytime_parts.corpus import CONTEXT, Corpus, Stream
from anytime_parts.methods import Method
from anytime_parts.plan import MODELS, PLAIN_BATCH, READ_OFF, Point

BINS = 250  # of the training loss in a result file
SAVE_EVERY = 60  # seconds between the saves that --resume goes on from
EVALUATION_BATCH = 64  # sequences
HOPELESS = math.log(256) + 1  # nats per byte: worse than knowing nothing
PATIENCE = 10  # bins: a run may come back from a spike


class Run:
    """A point on its way."""

    def __init__(self, point: Point, corpus: Corpus) -> None:
        width, layers = MODELS[point.model]
        self.point, self.corpus = point, corpus
        self.model = GPT(width, layers, CONTEXT, point.seed)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.sequences = PLAIN_BATCH * point.batch
        self.steps = self.step_at(point.length)
        self.method = Method(self.model.parameters(), point, self.steps)
        self.stream = Stream(corpus.train, self.sequences, self.steps, point.seed)
        self.bin = max(1, -(-self.steps // BINS))
        lengths = [t for t in READ_OFF if t <= point.length]
        # A schedule has its result at its end alone.
        self.read_off = {
            self.step_at(t): t for t in lengths if point.schedule is None or t == point.length
        }
        self.done = 0
        self.seconds = self.cpu_seconds = 0.0
        names = ("step", "loss", "deviation", "rate", "lowest_rate")
        self.curve: dict[str, list[float]] = {name: [] for name in names}
        self.evaluations: list[dict[str, float]] = []
        self.diverged = False

    def step_at(self, tokens_per_parameter: int) -> int:
        """The step at which a run has seen so many bytes for each parameter."""
        return max(1, round(tokens_per_parameter * self.parameters / (self.sequences * CONTEXT)))

    def train(self, save: Path, tell: Callable[[str], None]) -> None:
        """Go on to the end; now and then put into ``save`` what that takes."""
        saved = time.monotonic()
        while self.done < self.steps and not self.diverged:
            started, cpu = time.monotonic(), time.process_time()
            self._bin()
            self.seconds += time.monotonic() - started
            self.cpu_seconds += time.process_time() - cpu
            if time.monotonic() - saved > SAVE_EVERY:
                saved = time.monotonic()
                with replacing(save) as file:
                    torch.save(self._state(), file)
                tell(f"  step {self.done:,} of {self.steps:,}, loss {self.curve['loss'][-1]:.3f}")

    def _bin(self) -> None:
        losses, lowest = [], math.inf
        for number in range(self.done, min(self.done + self.bin, self.steps)):
            loss = mean_loss(self.model, *self.stream.batch(number))
            loss.backward()
            self.method.step(number, loss.detach())
            self.method.optimizer.zero_grad()
            losses.append(float(loss.detach()))
            lowest = min(lowest, self.method.rate())
            self.done += 1
            if self.done in self.read_off:
                self.evaluations.append(self._evaluate())
        values = torch.tensor(losses, dtype=torch.float64)
        mean = float(values.mean())
        self.curve["step"].append(self.done - (len(losses) - 1) / 2)  # the middle of the bin
        self.curve["loss"].append(mean)
        self.curve["deviation"].append(float(values.std()) if len(losses) > 1 else 0.0)
        self.curve["rate"].append(self.method.rate())
        self.curve["lowest_rate"].append(
            lowest
        )  # a cap leaves few steps below it, between two bins' ends
        self.diverged = hopeless(self.curve["loss"])

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        tokens, targets = self.corpus.validation_windows()
        pairs = list(
            zip(tokens.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True)
        )
        with self.method.result():
            losses = [float(mean_loss(self.model, *pair)) for pair in pairs]
        return {
            "step": self.done,
            "tokens_per_parameter": self.read_off[self.done],
            "validation_loss": sum(losses) / len(losses),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.method.optimizer.state_dict(),
            "figures": self._figures(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``train`` saved."""
        self.model.load_state_dict(state["model"])
        self.method.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["figures"].items():
            setattr(self, name, value)

    def _figures(self) -> dict[str, Any]:
        names = ("done", "seconds", "cpu_seconds", "curve", "evaluations", "diverged")
        return {name: getattr(self, name) for name in names}

    def result(self, fingerprint: str, commit: str) -> dict[str, Any]:
        """What the result file says."""
        curve = {name: [float(f"{v:.5g}") for v in values] for name, values in self.curve.items()}
        return {
            "name": self.point.name,
            "point": self.point.as_dict(),
            "parameters": self.parameters,
            "steps": self.steps,
            "bytes_per_step": self.sequences * CONTEXT,
            "evaluations": self.evaluations,
            "diverged": self.diverged,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": f"{processor()}, {torch.get_num_threads()} thread",
            "torch": torch.__version__,
            "commit": commit,
            "corpus": fingerprint,
            "curve": curve,
        }


def hopeless(losses: list[float]) -> bool:
    """Whether the last bins are all worse than knowing nothing, or the last one is no number."""
    late = losses[-PATIENCE:]
    return not math.isfinite(late[-1]) or (len(late) == PATIENCE and min(late) >= HOPELESS)


def processor() -> str:
    """The make of the CPU, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown"
    )


def commit_of(folder: Path) -> str:
    """The commit that the package was taken from."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write(path: Path, result: dict[str, Any]) -> None:
    """A whole file or none; the curve on one line each, all else readable."""
    curve = result.pop("curve")
    text = json.dumps(result, indent=1).removesuffix("\n}")
    lines = ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in curve.items())
    with replacing(path) as file:
        file.write(f'{text},\n "curve": {{\n{lines}\n }}\n}}\n'.encode())
