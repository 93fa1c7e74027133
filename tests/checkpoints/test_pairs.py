"""A model and an optimizer that were saved in different modes do not belong together: that is told."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import device_of, through_a_file
from torch import nn

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    SFPlusWarning,
)

# no warning unless a test expects it
pytestmark = pytest.mark.filterwarnings("error")


def make(kind: Any, backend: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    model = model.to(device_of(backend), dtype)
    return model, kind(model.parameters(), lr=0.1, backend=backend)


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    optimizer.train()
    for _ in range(steps):
        x = torch.randn(16, 8, generator=generator).to(device, dtype)
        target = x[:, :3].argmax(1)

        def closure(x: Any = x, target: Any = target) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            return loss

        optimizer.step(closure)


def saved(kind: Any, backend: str, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """The states of one run: of the model and of the optimizer, in both modes."""
    model, optimizer = make(kind, backend, dtype)
    train(model, optimizer, 12)
    states = {"averaged": {"model": optimizer.averaged_state_dict(model)}}
    for mode, change in (("train", optimizer.train), ("eval", optimizer.eval)):
        change()
        states[mode] = copy.deepcopy(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        )
    loaded: dict[str, dict[str, Any]] = through_a_file(states)
    return loaded


def go_on(kind: Any, backend: str, dtype: torch.dtype, loads: Callable[[Any, Any], None]) -> None:
    model, optimizer = make(kind, backend, dtype)
    loads(model, optimizer)
    train(model, optimizer, 10)


each_class = pytest.mark.parametrize("kind", [AdamCScheduleFreePlus, AdamWScheduleFree])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@each_class
@each_dtype
@pytest.mark.parametrize(
    ("of_model", "of_optimizer"), [("averaged", "train"), ("eval", "train"), ("train", "eval")]
)
def test_of_different_modes(
    backend: str, kind: Any, dtype: torch.dtype, of_model: str, of_optimizer: str
) -> None:
    states = saved(kind, backend, dtype)

    def model_first(model: Any, optimizer: Any) -> None:
        model.load_state_dict(states[of_model]["model"])
        optimizer.load_state_dict(states[of_optimizer]["optimizer"])

    def optimizer_first(model: Any, optimizer: Any) -> None:
        optimizer.load_state_dict(states[of_optimizer]["optimizer"])
        model.load_state_dict(states[of_model]["model"])

    for loads in (model_first, optimizer_first):
        with pytest.warns(SFPlusWarning, match=rf"\[other-mode\].* in {of_optimizer} mode"):
            go_on(kind, backend, dtype, loads)


@each_class
@each_dtype
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_of_one_mode(backend: str, kind: Any, dtype: torch.dtype, mode: str) -> None:
    states = saved(kind, backend, dtype)

    def both(model: Any, optimizer: Any) -> None:
        optimizer.load_state_dict(states[mode]["optimizer"])
        model.load_state_dict(states[mode]["model"])

    go_on(kind, backend, dtype, both)
    # other weights are nobody's business
    go_on(kind, backend, dtype, lambda _, o: o.load_state_dict(states[mode]["optimizer"]))


def test_a_closure_form_has_no_modes(backend: str) -> None:
    states = saved(AdamWScheduleFreeClosure, backend, torch.float32)
    assert states["train"]["optimizer"]["param_groups"][0]["probe"] == ()

    def loads(model: Any, optimizer: Any) -> None:
        model.load_state_dict(states["averaged"]["model"])
        optimizer.load_state_dict(states["train"]["optimizer"])

    go_on(AdamWScheduleFreeClosure, backend, torch.float32, loads)
