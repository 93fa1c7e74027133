"""Compilers for the tests, and silence while they work."""

import logging
from collections.abc import Iterator

import pytest
import torch
from traced_runs import Compiler


@pytest.fixture
def silence(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Nothing was compiled before the test; in it no warning, and nothing logged."""
    torch._dynamo.reset()
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch")]
    for name in names:  # some do not propagate
        logging.getLogger(name).addHandler(handler)
    yield
    for name in names:
        logging.getLogger(name).removeHandler(handler)
    torch._dynamo.reset()
    # of which torch has some of its own, and which Python does not show
    # and ours of an lr that falls, which some of the tests let fall
    said += [
        str(w.message)
        for w in recwarn
        if w.category is not DeprecationWarning and "[scheduler]" not in str(w.message)
    ]
    assert said == []


@pytest.fixture
def compiler() -> Compiler:
    """Which runs graphs as they were traced: the operator gets the optimizer's tensors."""
    return Compiler("eager")


@pytest.fixture
def copying() -> Compiler:
    """Which gives the operator copies of what it writes, and writes them back."""
    return Compiler("aot_eager")
