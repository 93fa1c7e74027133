"""Lightning's Fabric: follow() and report_loss(), and the modes by hand."""

from pathlib import Path

import pytest
import torch
from libraries import Watch, batches, held, iterate, needs, net, same
from torch import nn

needs("lightning")

from lightning.fabric import Fabric
from lightning_runs import plus

from sfplus_kernels import AdamCScheduleFreePlus, follow, report_loss

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


def test_fabric(tmp_path: Path) -> None:
    """follow() and report_loss() into the real wrapper; the wrapper's own metrics(); fabric.save."""
    fabric = Fabric(accelerator="cpu")
    model = net()
    module, wrapper = fabric.setup(model, plus(model.parameters()))
    follow(model, wrapper)
    inner = wrapper.optimizer
    watch, losses = Watch(inner), []
    for x, y in batches(8, 4):
        loss = nn.functional.cross_entropy(module(x), y)
        fabric.backward(loss)
        report_loss(wrapper, loss)
        wrapper.step()
        wrapper.zero_grad()
        losses.append(float(loss))
    assert watch.losses == pytest.approx(losses)
    assert wrapper.metrics() == inner.metrics()
    assert wrapper.metrics()["k"] == 4
    x, y = iterate(model, inner), held(model)
    with wrapper.averaged():
        assert same(held(model), x)
    assert same(held(model), y)
    assert same(wrapper.averaged_state_dict(model), x)
    fabric.save(tmp_path / "file.ckpt", {"model": module, "optimizer": wrapper})
    saved = torch.load(tmp_path / "file.ckpt", weights_only=True)
    assert same(saved["model"], x)
    assert not same(saved["model"], y)
    assert saved["optimizer"]["param_groups"][0]["k"] == 4


def test_fabric_modes_by_hand() -> None:
    """train() and eval() of the wrapper, with a beta that changes."""
    fabric = Fabric(accelerator="cpu")
    model, plain = net(), net()
    arguments = {"lr": 0.1, "sf_beta1_anneal_steps": 5}
    _, wrapper = fabric.setup(model, AdamCScheduleFreePlus(model.parameters(), **arguments))
    other = AdamCScheduleFreePlus(plain.parameters(), **arguments)
    for x, y in batches(8, 6):
        for one, optimizer in ((model, wrapper), (plain, other)):
            optimizer.train()
            loss = nn.functional.cross_entropy(one(x), y)
            loss.backward()
            report_loss(optimizer, loss)
            optimizer.step()
            optimizer.zero_grad()
            optimizer.eval()
        assert same(held(model), held(plain))
        state = wrapper.state_dict()["param_groups"][0]
        assert state["k"] == other.state_dict()["param_groups"][0]["k"]
