"""Hands laid on state and groups, on the host build of the CUDA kernels: see tests/truth."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pybind11")
import on_host_entries
from on_host_entries import BACKEND
from truth import test_hands, test_machine

on_host = on_host_entries.on_host
pytestmark = pytest.mark.usefixtures("on_host")


class OnHost(test_machine.Machine):
    """The machine on these kernels."""

    backends = (BACKEND,)


@pytest.mark.parametrize(
    ("name", "dtype"), [("adamw", torch.float64), ("plus", torch.float64), ("plus", torch.bfloat16)]
)
def test_the_next_steps_are_those_of_the_containers(name: str, dtype: torch.dtype) -> None:
    test_hands.test_the_next_steps_are_those_of_the_containers(name, BACKEND, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", test_hands.CLASSES)
def test_so_are_those_of_each_class(name: str, dtype: torch.dtype) -> None:
    test_hands.test_the_next_steps_are_those_of_the_containers(name, BACKEND, dtype)


@pytest.mark.parametrize("name", ["adamw", "plus"])
def test_memory_that_went_away_is_never_touched(name: str) -> None:
    test_hands.test_memory_that_went_away_is_never_touched(name, BACKEND)


def test_five_sequences() -> None:
    test_machine.run(5, derandomize=True, machine=OnHost)


@pytest.mark.by_hand  # other sequences each time
def test_two_hundred_sequences() -> None:
    test_machine.run(200, derandomize=False, machine=OnHost)
