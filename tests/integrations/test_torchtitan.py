"""torchtitan's OptimizersContainer with the optimizers of this package."""

import copy
from typing import Any

import pytest
import torch
from libraries import Watch, batches, equal, held, iterate, needs, net, same
from torch import nn

needs("torchtitan")

from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

from sfplus_kernels import AdamCScheduleFreePlus, add_loss
from sfplus_kernels.integrations.torchtitan import container

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

KWARGS: dict[str, dict[str, Any]] = {
    "AdamCScheduleFreePlus": {"lr": 0.1, "weight_decay": 5.0},
    "AdamWScheduleFree": {"lr": 0.05, "weight_decay": 0.1},
}


def make(name: str, parts: list[nn.Module], kind: Any = None) -> Any:
    groups = [
        ParamGroupConfig(
            pattern=".*bias",
            optimizer_name=name,
            optimizer_kwargs={**KWARGS[name], "weight_decay": 0.0},
        ),
        ParamGroupConfig(pattern=".*", optimizer_name=name, optimizer_kwargs=KWARGS[name]),
    ]
    kind = kind or container()
    config = kind.Config(param_groups=groups, implementation="for-loop")
    return config.build(model_parts=parts)


def train(model: nn.Module, optimizers: Any, first: int, last: int) -> list[float]:
    """Two micro-batches a step, each loss divided by the number of all items."""
    losses = []
    model.train()
    for k, (x, y) in enumerate(batches(8, last)):
        if k < first:
            continue
        loss = nn.functional.cross_entropy(model(x), y, reduction="none")
        for part in (loss[:4].sum() / 8, loss[4:].sum() / 8):
            part.backward(retain_graph=True)
            add_loss(optimizers, part.detach())
        losses.append(float(loss.mean()))
        optimizers.step()
        optimizers.zero_grad()
    return losses


@pytest.mark.parametrize("name", KWARGS)
def test_trains_saves_x_and_resumes(name: str) -> None:
    model = net()
    optimizers = make(name, [model])
    (inner,) = optimizers.optimizers
    watch = Watch(inner)
    losses = train(model, optimizers, 0, 3)
    if inner.needs_loss:
        assert watch.losses == pytest.approx(losses, rel=1e-6)
    x, y = iterate(model, inner), held(model)
    files = copy.deepcopy((model.state_dict(), optimizers.state_dict()))
    assert same(files[0], x)
    assert not same(files[0], y)
    assert not files[1]["param_groups.0.weight.train_mode"]
    train(model, optimizers, 3, 6)

    again = net(seed=5)
    others = make(name, [again])
    again.load_state_dict(files[0])
    others.load_state_dict(files[1])
    train(again, others, 3, 6)
    pairs = ((model, inner), (again, others.optimizers[0]))
    assert equal(*[[iterate(m, o, which) for which in "xyz"] for m, o in pairs])


def test_two_model_parts_share_one_step() -> None:
    """As pipeline stages in one process: the steps of one optimizer with all parameters."""
    model, whole = net(), net()
    parts: list[nn.Module] = [nn.Sequential(model[0], model[1]), nn.Sequential(model[2])]
    optimizers = make("AdamCScheduleFreePlus", parts)
    biases = [p for p in whole.parameters() if p.ndim == 1]
    weights = [p for p in whole.parameters() if p.ndim > 1]
    groups = [{"params": biases, "weight_decay": 0.0}, {"params": weights}]
    single = AdamCScheduleFreePlus(groups, **KWARGS["AdamCScheduleFreePlus"])
    single.train()
    for x, y in batches(8, 4):
        loss = nn.functional.cross_entropy(parts[1](parts[0](x)), y)
        loss.backward()
        add_loss(optimizers, loss)
        optimizers.step()
        optimizers.zero_grad()
        loss = nn.functional.cross_entropy(whole(x), y)
        loss.backward()
        single.step(loss=loss)
        single.zero_grad()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_plain_use_does_not_know_the_names() -> None:
    with pytest.raises(NotImplementedError, match="AdamCScheduleFreePlus not added"):
        make("AdamCScheduleFreePlus", [net()], OptimizersContainer)
    assert type(make("AdamCScheduleFreePlus", [net()])).__name__.startswith("ScheduleFree")
