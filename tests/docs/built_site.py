"""The built site, served on this machine, and Debian's Chromium to look at it."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support import ROOT

FIGURES = {"interpolation": "#interpolation", "step-size": "#step-size", "predictor": "#predictor"}
"""The pages with a figure that answers, and where it is in them."""

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def why_not_built() -> str | None:
    """What is missing to build the site."""
    missing = [
        name for name in ("sphinx", "myst_parser", "furo") if not importlib.util.find_spec(name)
    ]
    if missing:
        return f"needs {', '.join(missing)}: pip install '.[docs]'"
    if not (ROOT / "docs" / "node_modules").exists():
        return "needs the plotting library from npm: npm ci --prefix docs"
    return None


def why_no_browser() -> str | None:
    """What is missing to look at it."""
    if CHROMIUM is None:
        return "needs Chromium: apt-get install chromium"
    if not importlib.util.find_spec("playwright"):
        return "needs playwright: pip install '.[docs]'"
    return None


def build(folder: Path) -> None:
    """As `make docs` does: warnings are errors."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "docs",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Not a word."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the folder's pages."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
