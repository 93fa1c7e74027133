"""The text: Python source that comes with every checkout's environment, each piece of it seen once."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from lm.data import windows
from torch import Generator, Tensor

# Packages whose versions constraints.txt pins: the text is the same wherever the environment is.
PACKAGES = ("torch", "sympy", "scipy", "sklearn", "numpy", "matplotlib", "networkx")
VALIDATION_SHARE = 20  # one file in so many
LARGEST_FILE = 300_000  # bytes; larger ones are tables and generated code
CONTEXT = 64
VALIDATION_WINDOWS = 1024


def source_files() -> list[Path]:
    """The standard library's files and the packages', in the same order everywhere."""
    library = Path(sysconfig.get_path("stdlib"))
    roots = [Path(sysconfig.get_path("purelib"), name) for name in PACKAGES]
    missing = [root.name for root in roots if not root.is_dir()]
    if missing:
        raise RuntimeError(
            f"{', '.join(missing)} not found beside this Python ({sys.executable}); expected the "
            "environment of the tests: pip install -c constraints.txt -e '.[test]'"
        )
    files = [path for path in library.rglob("*.py") if "site-packages" not in path.parts] + [
        path for root in roots for path in root.rglob("*.py")
    ]
    # Relative names, so that the order does not depend on where Python was installed.
    return sorted(files, key=lambda path: path.as_posix().rpartition("lib/python")[2])


def contents(files: list[Path]) -> Iterator[bytes]:
    """Each different text once: packages carry copies of one another."""
    seen = set()
    for path in files:
        text = path.read_bytes()
        digest = hashlib.sha256(text).digest()
        if len(text) <= LARGEST_FILE and digest not in seen:
            seen.add(digest)
            yield text


@dataclass(frozen=True)
class Corpus:
    """Training and validation text, split by file, on the CPU."""

    train: Tensor
    validation: Tensor

    @classmethod
    def load(cls, cache: Path | None = None) -> Corpus:
        """Read the sources, or what an earlier call put into ``cache`` (about 130 MB)."""
        if cache is not None and cache.exists():
            return cls(**torch.load(cache, weights_only=True))
        train, validation = bytearray(), bytearray()
        for text in contents(source_files()):
            # By its content, not by its place: one more file elsewhere moves no other.
            part = hashlib.sha256(text).digest()[0] % VALIDATION_SHARE
            (train if part else validation).extend(text)
        corpus = cls(*(torch.frombuffer(part, dtype=torch.uint8) for part in (train, validation)))
        if cache is not None:
            torch.save({"train": corpus.train, "validation": corpus.validation}, cache)
        return corpus

    def fingerprint(self) -> str:
        """Results are comparable if it is the same."""
        digest = hashlib.sha256()
        for text in (self.train, self.validation):
            digest.update(text.numpy().tobytes())
        return digest.hexdigest()[:16]

    def validation_windows(self) -> tuple[Tensor, Tensor]:
        """The same pieces for every run."""
        return windows(self.validation, VALIDATION_WINDOWS, CONTEXT, Generator().manual_seed(0))


class Stream:
    """Batches of pieces that do not overlap and do not come again, in an order that the seed decides."""

    def __init__(self, text: Tensor, sequences: int, steps: int, seed: int) -> None:
        count = (len(text) - 1) // CONTEXT
        if sequences * steps > count:
            raise ValueError(
                f"{steps} batches of {sequences} pieces were asked for, and the text has {count} pieces; "
                "expected a shorter run: no text is shown twice"
            )
        self.inputs = text[: count * CONTEXT].view(count, CONTEXT)
        self.targets = text[1 : count * CONTEXT + 1].view(count, CONTEXT)
        self.order = torch.randperm(count, generator=Generator().manual_seed(seed))
        self.sequences = sequences

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(sequences, CONTEXT) of inputs and of the bytes that follow each, for this step."""
        chosen = self.order[step * self.sequences : (step + 1) * self.sequences]
        return self.inputs[chosen].long(), self.targets[chosen].long()
