"""timm: register(), its factory, its scaler and its checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import Watch, batches, held, iterate, needs, net, same
from torch import nn

needs("timm")

import timm.optim
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus, follow, report_loss
from sfplus_kernels.integrations.timm import FAMILY, register

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", FAMILY)
def test_factory(name: str) -> None:
    register()
    optimizer = timm.optim.create_optimizer_v2(net(), opt=name.lower(), lr=0.1, weight_decay=0.3)
    assert type(optimizer) is getattr(sfplus_kernels, name)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def train(model: nn.Module, optimizer: Any, count: int) -> list[float]:
    """As timm's train script, with the loss divided for two micro-batches."""
    scaler, losses = NativeScaler("cpu"), []
    model.train()
    for k, (x, y) in enumerate(batches(8, 2 * count)):
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(float(loss))
        report_loss(optimizer, loss)  # the undivided one
        scaler(loss / 2, optimizer, parameters=model.parameters(), need_update=k % 2 == 1)
        if k % 2:
            optimizer.zero_grad()
    return [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]


def saved_by_timm(folder: Path, model: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(epoch=0, metric=1.0)
    return torch.load(folder / "last.pth.tar", weights_only=False)["state_dict"]


def test_trains_and_saves_x(tmp_path: Path) -> None:
    register()
    model = net()
    optimizer = timm.optim.create_optimizer_v2(
        model, opt="adamcschedulefreeplus", lr=0.1, weight_decay=5.0
    )
    model.default_cfg = {"architecture": "tiny"}  # type: ignore[assignment]
    follow(model, optimizer)
    ema = ModelEmaV3(model)
    watch = Watch(optimizer)
    losses = train(model, optimizer, 3)
    assert watch.losses == pytest.approx(losses, rel=1e-5)
    y = held(model)
    ema.update(model)
    file = saved_by_timm(tmp_path, model, optimizer)
    assert same(file, iterate(model, optimizer))
    assert not same(file, y)


def test_plain_use_saves_y(tmp_path: Path) -> None:
    model = net()
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1)
    optimizer.train()
    train(model, optimizer, 3)
    file = saved_by_timm(tmp_path, model, optimizer)
    assert same(file, iterate(model, optimizer, "y"))
    assert not same(file, iterate(model, optimizer))


def test_the_scripts_clipping_enlarges_gamma() -> None:
    """Hence max_grad_norm in the optimizer, and no --clip-grad."""
    found = []
    for clip, inside in ((None, None), (0.1, None), (None, 0.1)):
        model = net()
        optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1, max_grad_norm=inside)
        follow(model, optimizer)
        watch = Watch(optimizer)
        model.train()
        x, y = next(batches(8, 1))
        loss = nn.functional.cross_entropy(model(x), y)
        report_loss(optimizer, loss)
        NativeScaler("cpu")(loss, optimizer, clip_grad=clip, parameters=model.parameters())
        found.append(watch.polyak[0])
    free, outside, inside_ = found
    assert outside > 2 * free
    assert inside_ == pytest.approx(free)
