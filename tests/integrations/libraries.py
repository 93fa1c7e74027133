"""What the tests of trainers share: a tiny model, its data, what is asked of every trainer."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch
from torch import Tensor, nn


def needs(*packages: str) -> None:
    """Skip a test module where one of these libraries is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)


def _define_torchvisions_operators() -> None:
    """PyPI's torchvision is built for the CUDA torch; with the CPU one it does not find its operators."""
    if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
        _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_define_torchvisions_operators()

N_CLASSES = 4


class Regression(torch.utils.data.Dataset):
    """Items of a fixed random problem."""

    def __init__(self, size: int = 64) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(size, 6, generator=generator)
        self.y = torch.randint(N_CLASSES, (size,), generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, N_CLASSES))


def batches(size: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``count`` batches of ``size`` items, in order, round and round."""
    data = Regression()
    for k in range(count):
        index = torch.arange(k * size, (k + 1) * size) % len(data)
        yield data.x[index], data.y[index]


def held(model: nn.Module) -> dict[str, Tensor]:
    """What the parameters hold."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def iterate(model: nn.Module, optimizer: Any, which: str = "x") -> dict[str, Tensor]:
    """x, y or z of the parameters that are trained."""
    return {
        name: getattr(optimizer.iterates(p), which).to(p.dtype)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def same(file: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether a file holds these tensors, bit for bit; it may hold buffers and tied names beside them."""
    assert expected
    return all(torch.equal(file[name], value) for name, value in expected.items())


def equal(a: Sequence[Mapping[str, Tensor]], b: Sequence[Mapping[str, Tensor]]) -> bool:
    """Bits of several iterates."""
    return all(p.keys() == q.keys() and same(p, q) for p, q in zip(a, b, strict=True))


class Watch:
    """Notes the figures of each step of an optimizer that has a Polyak step."""

    def __init__(self, optimizer: Any) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.polyak: list[float] = []
        optimizer.register_step_post_hook(self._note)

    def _note(self, optimizer: Any, *_: Any) -> None:
        metrics = optimizer.metrics() if hasattr(optimizer, "metrics") else {}
        if "polyak_lr" in metrics:
            self.losses.append(metrics["function_value"])
            self.norms.append(metrics["grad_norm"])
            self.polyak.append(metrics["polyak_lr"])
