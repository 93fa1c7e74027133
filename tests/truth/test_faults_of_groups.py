"""What users, trainers and tools do to an optimizer's groups and their numbers, one thing at a time."""

from __future__ import annotations

import collections
import copy
from typing import Any

import numpy
import pytest
import torch
from support import BACKENDS, assert_same_bits, make_params
from torch import nn
from truth.test_hands import CLASSES, WITHOUT_AVERAGES, make, steps
from truth.trained import FAST, PLAIN, trained

import sfplus_kernels as ours


@pytest.mark.parametrize("backend", FAST)
def test_a_parameter_that_is_away_does_not_count(backend: str) -> None:
    params = make_params([(3,), (4,), (5,)])
    optimizer = ours.AdamWScheduleFree(params, backend=backend)
    optimizer.train()

    def step() -> None:
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()

    step()
    group = optimizer.param_groups[0]
    away = group["params"].pop(0)
    for _ in range(40):
        step()
    assert float(optimizer.state[away]["step"]) == 1
    group["params"].append(away)
    step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [2, 42, 42]


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in WITHOUT_AVERAGES])
def test_average_of_a_model_that_is_not_trained(name: str) -> None:
    torch.manual_seed(0)
    model = nn.ParameterList(make_params([(3,), (2, 2)]))
    optimizer, _ = make(name, "cpu", torch.float64)
    for mode in ("train", "eval"):
        getattr(optimizer, mode)()
        with pytest.raises(ValueError, match=r"not this optimizer's: 0, 1; expected"):
            optimizer.averaged_state_dict(copy.deepcopy(model))


@pytest.mark.parametrize("name", [*PLAIN, "wrapper"])
def test_groups_come_and_go(name: str) -> None:
    """Where no number is formed of all gradients: also one group at a time, as DeepSpeed steps them."""
    ends = []
    for in_turns in (False, True):
        optimizer, params = trained(name)
        groups = optimizer.param_groups
        for p in params:
            p.grad = torch.ones_like(p)
        if in_turns and name != "wrapper":
            for group in groups:
                optimizer.param_groups = [group]
                optimizer.step()
            optimizer.param_groups = groups
        else:
            optimizer.step()
        ends.append([p.detach().clone() for p in params])
        # torch's own base of the wrapper wants groups to be complete
        whole = {k: v for k, v in groups[0].items() if k != "params" and name == "wrapper"}
        del groups[0]
        groups.append({**whole, "params": make_params([(3,)]), "lr": 0.125, "weight_decay": 0.0})
        before = [p.detach().clone() for p in params[:2]]
        for p in params + groups[-1]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert_same_bits([p.detach() for p in params[:2]], before)
        assert optimizer.metrics()["k"] == 5
        optimizer.eval()
        copy.deepcopy(optimizer)
    assert_same_bits(*ends)


def test_a_group_of_one_step_size_for_all_may_go_for_good() -> None:
    optimizer, params = trained("plus")
    groups = optimizer.param_groups
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.param_groups = groups[:1]
    with pytest.raises(
        RuntimeError, match=r"1 of the optimizer's 2 groups.*DeepSpeed.*del optimizer"
    ):
        optimizer.step()
    optimizer.param_groups = groups
    optimizer.step()
    del optimizer.param_groups[1]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.metrics()["k"] == 5
    moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
    assert moved == [True, True, False, False, False]


@pytest.mark.parametrize("backend", FAST)
def test_frozen_integers_are_left_alone(backend: str) -> None:
    packed = nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
    weight = nn.Parameter(torch.ones(3))
    optimizer = ours.AdamWScheduleFree([packed, weight], lr=0.1, backend=backend)
    optimizer.train()
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimizer.step()
        optimizer.eval()
        optimizer.train()
    assert torch.equal(packed, torch.arange(6, dtype=torch.uint8))
    assert set(optimizer.state) == {weight}


class Numbers(collections.abc.Sequence):
    """As omegaconf's ListConfig: a sequence that is no list."""

    def __getitem__(self, index: Any) -> Any:
        return (0.8, 0.97)[index]

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "settings",
    [
        {"betas": [0.8, 0.97]},
        {"betas": Numbers()},
        {"betas": numpy.array([0.8, 0.97])},
        {"betas": torch.tensor([0.8, 0.97], dtype=torch.float64)},
        {"betas": (numpy.float64(0.8), torch.tensor(0.97, dtype=torch.float64))},
        {"lr": numpy.float64(0.125), "weight_decay": numpy.float32(0.25), "eps": numpy.array(1e-8)},
        {
            "lr": torch.tensor(0.125),
            "weight_decay": torch.tensor(0.25),
            "warmup_steps": numpy.int64(4),
        },
        {"lr": torch.tensor([0.125]), "r": torch.tensor(1.0)},
        {"lr": torch.tensor([[0.125]])},
    ],
)
def test_numbers_of_any_make(settings: dict[str, Any]) -> None:
    def plain(value: Any) -> Any:
        return (
            tuple(map(float, value))
            if isinstance(value, Numbers | list | tuple)
            else (
                tuple(value.tolist())
                if numpy.ndim(value) == 1 and len(value) == 2
                else float(value)
            )
        )

    ends = []
    for given in (settings, {key: plain(value) for key, value in settings.items()}):
        for cls in (ours.AdamWScheduleFree, ours.AdamCScheduleFreePlus):
            params = make_params([(3,), (4, 2)])
            optimizer = cls(params, **given)
            optimizer.train()
            for _ in range(3):
                for p in params:
                    p.grad = torch.ones_like(p)
                optimizer.step(*([lambda: 2.0] if cls is ours.AdamCScheduleFreePlus else []))
            ends.append([p.detach() for p in params])
    for a, b in zip(ends[:2], ends[2:], strict=True):
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_hooks_of_a_wrapper_run() -> None:
    optimizer, params = trained("wrapper")
    ran = []
    optimizer.register_state_dict_pre_hook(lambda o: ran.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, s: {key: value for key, value in s.items() if key != "mine"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: ran.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["mine"] == 1
    optimizer.load_state_dict(saved)
    assert ran == ["before saving", "loaded"]
    steps(optimizer, params, 3, 4)


@pytest.mark.parametrize("name", CLASSES)
def test_groups_that_were_appended_by_hand(name: str) -> None:
    optimizer, params = trained(name)
    new = make_params([(2, 2)], seed=5)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer.param_groups.append({**group, "params": new})
    optimizer.state_dict()
    optimizer.eval()
    optimizer.metrics()
    copy.deepcopy(optimizer)
    optimizer.train()
    before = new[0].detach().clone()
    steps(optimizer, params + new, 3, 6)
    assert not torch.equal(new[0], before)


@pytest.mark.parametrize("name", ["adamw", "plus"])
def test_a_loss_and_an_lr_of_one_element(name: str) -> None:
    for shape in ((1,), (1, 1)):
        params = make_params([(3,)])
        optimizer = ours.AdamCScheduleFreePlus(params, lr=torch.full(shape, 0.5))
        optimizer.train()
        loss = (params[0] ** 2).sum().reshape(shape)
        loss.backward()
        optimizer.step(loss=loss)
        assert optimizer.metrics()["function_value"] == loss.item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_one_group_may_ascend(name: str, backend: str) -> None:
    """As if its gradients had the other sign."""
    if backend == "triton" and name != "adamw":
        pytest.skip("slow in the interpreter")
    ends = []
    for ascends in (False, True):
        optimizer, params = make(name, backend, torch.float64)
        optimizer.param_groups[1]["maximize"] = ascends
        optimizer.train()
        for _ in range(3):
            for number, p in enumerate(params):
                sign = 1 if ascends or number < 2 else -1
                p.grad = torch.full_like(p, 0.5 * sign)
            optimizer.step()
        ends.append([p.detach() for p in params])
    assert_same_bits(*ends)
    maximize = {"params": make_params([(3,)]), "maximize": True}
    type(optimizer)([{"params": make_params([(2,)])}, maximize], lr=0.1)


def test_the_meta_device_is_named() -> None:
    with pytest.raises(ValueError, match="meta device.*to_empty"):
        ours.AdamWScheduleFree(nn.Linear(2, 2, device="meta").parameters())


@pytest.mark.parametrize("backend", FAST)
def test_run_state_that_is_written_into_a_group_counts(backend: str) -> None:
    """As in upstream, where it is an entry of the group: a new beginning of the average."""
    optimizer, params = trained("plus", backend)
    optimizer.state_dict()
    for group in optimizer.param_groups:
        group.update(k=0, weight_sum=0.0, lr_max=0.0)
    steps(optimizer, params, 3, 4)
    assert optimizer.metrics()["k"] == 1
    assert optimizer.metrics()["ckp1"] == [1.0, 1.0]
