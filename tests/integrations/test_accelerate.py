"""Accelerate: attach(), and what happens without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import Regression, Watch, equal, held, iterate, needs, net, same
from torch import nn

needs("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, report_loss
from sfplus_kernels.integrations.accelerate import attach

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _fresh_state() -> Any:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    loader: Any,
    steps: int = 99,
    each: Any = lambda loss: None,
) -> list[float]:
    """The loop of Accelerate's documentation; the loss of each window, computed beside it."""
    windows, parts = [], 0.0
    model.train()
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            parts += float(loss) / accelerator.gradient_accumulation_steps
            accelerator.backward(loss)
            each(loss)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                windows.append(parts)
                parts = 0.0
                if len(windows) == steps:
                    break
    return windows


def prepared(accelerator: Accelerator, maker: Any = None, seed: int = 0) -> tuple[Any, Any, Any]:
    model = net(seed)
    maker = maker or (lambda p: AdamCScheduleFreePlus(p, lr=0.1, weight_decay=5.0))
    loader = torch.utils.data.DataLoader(Regression(40), batch_size=8)
    return accelerator.prepare(model, maker(model.parameters()), loader)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loss(accumulation: int) -> None:
    """Five batches: with windows of three the second one is short, and divided by three all the same."""
    accelerator = Accelerator(gradient_accumulation_steps=accumulation)
    model, optimizer, loader = prepared(accelerator)
    attach(accelerator, optimizer, model)
    watch = Watch(optimizer.optimizer)
    windows = train(accelerator, model, optimizer, loader)
    assert len(windows) == {1: 5, 3: 2}[accumulation]
    assert watch.losses == pytest.approx(windows, rel=1e-6)


def test_plain_use_has_another_loss_in_the_last_window() -> None:
    """report_loss takes the mean of two losses, whose gradient was divided by three."""
    accelerator = Accelerator(gradient_accumulation_steps=3)
    model, optimizer, loader = prepared(accelerator)
    optimizer.train()
    watch = Watch(optimizer.optimizer)
    windows = train(
        accelerator, model, optimizer, loader, each=lambda loss: report_loss(optimizer, loss)
    )
    assert watch.losses[0] == pytest.approx(windows[0], rel=1e-6)
    assert watch.losses[1] == pytest.approx(1.5 * windows[1], rel=1e-6)


def test_gradient_scaler() -> None:
    """The loss is the true one, not the scaled one."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model, optimizer, loader = prepared(accelerator)
    attach(accelerator, optimizer, model)
    watch = Watch(optimizer.optimizer)
    windows = train(accelerator, model, optimizer, loader)
    assert optimizer.scaler is not None
    assert watch.losses == pytest.approx(windows, rel=1e-6)


@pytest.mark.parametrize("name", ["plus", "adamw"])
def test_saves_x(tmp_path: Path, name: str) -> None:
    """save_state, save_model and what the user saves."""
    adamw = (lambda p: AdamWScheduleFree(p, lr=0.05)) if name == "adamw" else None
    accelerator = Accelerator()
    model, optimizer, loader = prepared(accelerator, adamw)
    attach(accelerator, optimizer, model)
    for save, file in (
        (lambda: accelerator.save_state(str(tmp_path / "state")), "state/model.safetensors"),
        (lambda: accelerator.save_model(model, str(tmp_path / "model")), "model/model.safetensors"),
        (lambda: accelerator.save(accelerator.get_state_dict(model), tmp_path / "m.pt"), "m.pt"),
    ):
        train(accelerator, model, optimizer, loader, 3)
        x, y = iterate(model, optimizer.optimizer), held(model)
        save()
        path = tmp_path / file
        saved = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        assert same(saved, x)
        assert not same(saved, y)


def test_plain_use_saves_y(tmp_path: Path) -> None:
    accelerator = Accelerator()
    model, optimizer, loader = prepared(accelerator, lambda p: AdamWScheduleFree(p, lr=0.05))
    optimizer.train()
    train(accelerator, model, optimizer, loader)
    accelerator.save_state(str(tmp_path))
    assert same(load_file(tmp_path / "model.safetensors"), held(model))
    assert not same(iterate(model, optimizer.optimizer), held(model))


def test_resume_is_exact(tmp_path: Path) -> None:
    accelerator = Accelerator()
    model, optimizer, loader = prepared(accelerator)
    attach(accelerator, optimizer, model)
    train(accelerator, model, optimizer, loader, 3)
    accelerator.save_state(str(tmp_path))
    train(accelerator, model, optimizer, loader, 3)
    whole = [iterate(model, optimizer.optimizer, which) for which in "xyz"]

    again = Accelerator()
    model, optimizer, loader = prepared(again, seed=5)
    attach(again, optimizer, model)
    again.load_state(str(tmp_path))
    train(again, model, optimizer, loader, 3)
    assert equal(whole, [iterate(model, optimizer.optimizer, which) for which in "xyz"])


def test_a_backward_that_fails_leaves_no_loss() -> None:
    accelerator = Accelerator()
    model, optimizer, loader = prepared(accelerator)
    attach(accelerator, optimizer, model)
    with pytest.raises(RuntimeError, match="does not require grad"):
        accelerator.backward(torch.tensor(7.0))
    watch = Watch(optimizer.optimizer)
    windows = train(accelerator, model, optimizer, loader, 1)
    assert watch.losses == pytest.approx(windows, rel=1e-6)


def test_attach_again_and_to_another() -> None:
    accelerator = Accelerator()
    model, optimizer, loader = prepared(accelerator)
    attach(accelerator, optimizer, model)
    attach(accelerator, optimizer, model)
    watch = Watch(optimizer.optimizer)
    windows = train(accelerator, model, optimizer, loader, 1)
    assert watch.losses == pytest.approx(windows, rel=1e-6)  # told once
    other, another, _ = prepared(accelerator)
    with pytest.raises(ValueError, match="tells its losses to another"):
        attach(accelerator, another, other)
    attach(accelerator, accelerator.prepare(AdamWScheduleFree(net().parameters())))


def test_metrics_and_losses_reach_through_the_wrapper() -> None:
    accelerator = Accelerator()
    _, optimizer, _ = prepared(accelerator)
    report_loss(optimizer, 3.0)
    assert optimizer.optimizer.loss_reports.take() == 3.0
