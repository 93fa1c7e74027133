"""What the tests share that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from support import EVERYTHING, ROOT, family, plain, snapshot, stream, two_groups
from torch import Tensor

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.contract.formats import STATE_FORMATS

COMPILED = ["cuda", "triton"]


class Kind(NamedTuple):
    """One of the classes that the tests for a GPU run."""

    make: Any
    arguments: dict[str, Any]  # every mechanism at once
    groups: Callable[[Sequence[Tensor]], list[dict[str, Any]]]  # two that differ


KINDS = {
    "plus": Kind(AdamCScheduleFreePlus, EVERYTHING, two_groups),
    "adamw schedule-free": Kind(
        family.FAMILY["adamw"].ours,
        family.FAMILY["adamw"].everything,
        partial(family.groups_of, name="adamw"),
    ),
    **{
        name: Kind(member.ours, member.everything, partial(plain.plain_groups, name=name))
        for name, member in plain.PLAIN.items()
        if member.buffers
    },
}
"""A step with sums and one without; and those that average nothing."""

EACH_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EACH_FORMAT = pytest.mark.parametrize(
    ("kind", "state_format"),
    [
        pytest.param(kind, state_format, id=f"{name}-{state_format}")
        for name, kind in KINDS.items()
        for state_format in STATE_FORMATS
        # AdamC has the kernels of AdamW, SGD no state of 8 bits
        if state_format == "float32" or name != "adamc"
        if state_format != "8bit" or name != "sgd"
    ],
)


def on_gpu(steps: int, shapes: list[Any], seed: int = 1) -> list[tuple[Tensor, list[Any]]]:
    return [
        (
            torch.tensor(loss, device="cuda"),
            [None if g is None else g.to("cuda", torch.float32) for g in gradients],
        )
        for loss, gradients in stream(shapes, steps, seed=seed)
    ]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where the host waits for the device. torch warns that the mode is a prototype when it is set:
    that must not become an error in front of the ``finally``, or every later test had the mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Training:
    """A small model with static inputs, whose steps can be captured."""

    def __init__(self, kind: Kind, backend: str, state_format: str = "float32") -> None:
        torch.manual_seed(0)
        width = 33 if state_format == "float32" else 64
        layers = [torch.nn.Linear(7, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)]
        if state_format != "float32":  # a matrix that is large enough for 8 bits
            layers[2:2] = [torch.nn.Linear(width, width), torch.nn.Tanh()]
        self.model = torch.nn.Sequential(*layers).cuda()
        self.x = torch.zeros(16, 7, device="cuda")
        self.lr = torch.tensor(0.1, device="cuda")
        arguments = {**kind.arguments, "lr": self.lr, "state_format": state_format}
        self.optimizer = kind.make(self.model.parameters(), backend=backend, **arguments)
        self.optimizer.train()
        self.loss = torch.zeros((), device="cuda")

    def loss_at_hand(self) -> Tensor:
        return (self.model(self.x) - self.x.sum(1, keepdim=True)).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self.loss_at_hand()
        loss.backward()
        self.optimizer.step(loss=loss)
        self.loss.copy_(loss.detach())

    def feed(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        self.x.copy_(torch.randn(16, 7, generator=generator))

    def result(self) -> dict[str, Any]:
        return snapshot(self.optimizer, list(self.model.parameters()))


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
