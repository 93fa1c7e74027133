"""What users, trainers and tools do to an optimizer's state, one thing at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from support import BACKENDS, assert_same_bits, device_of
from torch import nn
from truth.test_hands import CLASSES, make, steps
from truth.trained import FAST, trained

import sfplus_kernels as ours


@pytest.mark.parametrize("name", CLASSES)
def test_a_second_optimizer_over_one_state_is_refused(name: str) -> None:
    optimizer, params = make(name, "cpu", torch.float64)
    with pytest.raises(
        TypeError, match=r"expected one: pass it on as it is, or take copy\.deepcopy"
    ):
        copy.copy(optimizer)
    optimizer.train()
    steps(optimizer, params, 0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_that_moves_to_other_memory_is_followed(backend: str) -> None:
    optimizer, params = trained("plus", backend)
    before = [float(optimizer.state[p]["step"]) for p in params]
    old = []
    for p in params:
        for value in optimizer.state[p].values():
            old.append((value.detach(), value.detach().clone()))
            value.data = value.detach().clone()
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [k + 1 for k in before]
    for memory, values in old:
        assert torch.equal(memory, values)  # nothing was written to where it was


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "displacement", "step", "master_param"])
def test_a_replaced_tensor_counts(backend: str, key: str) -> None:
    """It decides the next step as if it had always been there, and the old one is left alone."""
    dtype = torch.bfloat16 if key == "master_param" else torch.float64
    optimizer, params = trained("adamw", backend, dtype)
    twin, twins = trained("adamw", backend, dtype)
    replaced = [optimizer.state[p][key] for p in params]
    kept = [value.clone() for value in replaced]
    for p, q in zip(params, twins, strict=True):
        optimizer.state[p][key] = optimizer.state[p][key] * 3
        twin.state[q][key].mul_(3)
        if key == "master_param":  # else what is in the parameter wins
            for one in (optimizer.state[p], twin.state[q]):
                p.data.copy_(one[key])
                q.data.copy_(one[key])
    steps(optimizer, params, 3, 5)
    steps(twin, twins, 3, 5)
    assert_same_bits([p.detach() for p in params], [q.detach() for q in twins])
    assert_same_bits(replaced, kept)


@pytest.mark.parametrize("name", CLASSES)
def test_two_ways_to_begin_anew_are_one(name: str) -> None:
    ends = []
    for clear in (lambda state, p: state.pop(p), lambda state, p: state.update({p: {}})):
        optimizer, params = trained(name)
        own = getattr(optimizer, "_averaging", optimizer)
        clear(own.state, params[1])
        steps(optimizer, params, 3, 6)
        ends.append(([p.detach() for p in params], dict(own.state[params[1]])))
    assert_same_bits(*ends)


WAYS_OF_WRITING = {
    "load_state_dict": lambda model, to: model.load_state_dict(to),
    "copy_": lambda model, to: model.weight.copy_(to["weight"]),
    "data.copy_": lambda model, to: model.weight.data.copy_(to["weight"]),
    "data": lambda model, to: setattr(model.weight, "data", to["weight"].clone()),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("way", WAYS_OF_WRITING)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_written_into_a_half_precision_parameter_wins(
    dtype: torch.dtype, backend: str, way: str, mode: str
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 5, bias=False).to(device_of(backend), dtype)
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = ours.AdamWScheduleFree(model.parameters(), lr=0.1, backend=backend)
    optimizer.train()
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    getattr(optimizer, mode)()
    with torch.no_grad():
        WAYS_OF_WRITING[way](model, saved)
    found = optimizer.iterates(model.weight)
    assert torch.equal((found.y if mode == "train" else found.x).to(dtype), saved["weight"])
    optimizer.train()
    found = optimizer.iterates(model.weight)
    written = (found.y if mode == "train" else found.x) - saved["weight"]
    assert written.abs().max() < 1e-6
    # and the next step goes on from there: without a gradient's direction z stays
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(optimizer.iterates(model.weight).z, found.z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_only_the_step_is_not_of_the_parameters_shape(name: str) -> None:
    optimizer, params = trained(name, dtype=torch.bfloat16)
    for p in params:
        for key, value in optimizer.state.get(p, {}).items():
            assert key == "step" or value.shape == p.shape, key


def test_estimators_of_memory_get_the_state() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = nn.Linear(1000, 1000)
        for cls in (ours.AdamWScheduleFree, ours.AdamCScheduleFreePlus):
            optimizer = cls(model.parameters())
            optimizer.train()
            loss = model(torch.randn(2, 1000)).sum()
            loss.backward()
            optimizer.step(*([loss.clone] if cls is ours.AdamCScheduleFreePlus else []))
            optimizer.eval()
            optimizer.train()
            held = sum(v.nbytes for state in optimizer.state.values() for v in state.values())
            buffers = 3 if cls is ours.AdamCScheduleFreePlus else 2
            assert held == buffers * 4 * 1001 * 1000 + 2 * 8
