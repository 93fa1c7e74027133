"""A machine that does one other thing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy_thread() -> Iterator[subprocess.Popen]:
    """One thread of another process computes all the time, and ends with the block."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            time.sleep(0.2)  # until it is at it
            yield process
        finally:
            process.kill()
