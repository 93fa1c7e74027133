"""What is said of an optimizer's backend: which one it is where a better one cannot be had, and what is left
behind when it gives way to another."""

from __future__ import annotations

import logging

from sfplus_kernels.core.warnings_once import SFPlusWarning, warn_once
from sfplus_kernels.engine.engine import Engine

LOGGER = logging.getLogger("sfplus_kernels")


def tell_choice(engine: Engine) -> None:
    """Of one that nobody named: a warning if it is a slow one, a line of the log if it is the next best."""
    if not engine.passed_over:
        return
    if engine.backend_name == "eager":
        warn_once(SFPlusWarning, "eager", device=engine.device.type, reasons=engine.passed_over)
    else:
        LOGGER.info("the steps run on the backend %r: %s", engine.backend_name, engine.passed_over)


def tell_left_behind(owner: object, engine: Engine) -> None:
    """Before an engine is dropped whose memory a CUDA graph may read."""
    if engine.recorded:
        warn_once(owner, "graph")
