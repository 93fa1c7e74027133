"""The text: the source of Python's own standard library, as bytes."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

VALIDATION_EVERY = 20  # of the files, in order
MINIMUM_FILES = 100

# Installed packages are not the standard library, tests are absent from some installations, and the
# last three are tables and one long text, which a model learns by heart.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} | {
    "turtledemo",
    "encodings",
    "pydoc_data",
}


def source_files(root: Path | None = None) -> list[Path]:
    """The Python files below ``root`` (default: the standard library), in the same order everywhere.

    Raises:
        RuntimeError: hardly any files, as with a Python that keeps its library in a zip archive.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]  # not gone into
        names += [Path(folder, name) for name in files if name.endswith(".py")]
    if len(names) < MINIMUM_FILES:
        raise RuntimeError(
            f"found {len(names)} Python files in {root}; expected the source of the standard library "
            f"there, {MINIMUM_FILES} files or more"
        )
    return sorted(names, key=lambda name: name.relative_to(root).as_posix())


def split(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Training files and validation files; whole files, so that no text is in both."""
    train = [path for index, path in enumerate(files) if index % VALIDATION_EVERY]
    return train, files[::VALIDATION_EVERY]


def read(files: list[Path]) -> Tensor:
    """All the bytes, one file after the other."""
    return torch.frombuffer(
        bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8
    )


def windows(text: Tensor, count: int, context: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """``count`` random pieces of the text: the inputs, and the byte that follows each of them."""
    starts = torch.randint(len(text) - context, (count, 1), generator=generator)
    pieces = text[starts + torch.arange(context + 1)].long()
    return pieces[:, :-1], pieces[:, 1:]


@dataclass(frozen=True)
class Corpus:
    """The two texts, on the CPU."""

    train: Tensor
    validation: Tensor

    @classmethod
    def load(cls) -> Corpus:
        """Read the standard library."""
        train, validation = split(source_files())
        return cls(read(train), read(validation))

    def fingerprint(self) -> str:
        """Tells two texts apart; a resumed run must see the text that it began with."""
        digest = hashlib.sha256()
        for text in (self.train, self.validation):
            digest.update(text.numpy().tobytes())
        return digest.hexdigest()[:16]

    def validation_batches(
        self, batches: int, size: int, context: int
    ) -> list[tuple[Tensor, Tensor]]:
        """The same pieces in every run, whatever its seed: evaluations can be compared."""
        generator = Generator().manual_seed(0)
        return [windows(self.validation, size, context, generator) for _ in range(batches)]
