"""What the examples share: Ctrl-C, and the folder of a run."""

from __future__ import annotations

import signal
from datetime import datetime
from pathlib import Path
from types import FrameType

import typer

INTERRUPTED = 130  # what a shell reports for Ctrl-C


class Interrupt:
    """``with Interrupt() as interrupt:`` Ctrl-C sets ``interrupt.requested``; a second one kills."""

    requested = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)


def new_folder(runs: Path, name: str | None, advice: str = "take another name") -> Path:
    """Make the run folder; never one that exists, whose results it would mix with others.

    Args:
        name: None for the date and time.
        advice: what to do if the folder exists; ``{folder}`` in it is the folder.
    """
    name = name if name is not None else datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder = runs / name
    if name in ("", "..") or Path(name).name != name:
        raise typer.BadParameter(f"{name!r} is not the name of a folder.", param_hint="--name")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        hint = f"{folder} exists; {advice.format(folder=folder)}"
        raise typer.BadParameter(hint, param_hint="--name") from error
    return folder
