"""The optimizers that average nothing, on every backend: torch's trajectories, and the references'."""

import math
from typing import Any

import pytest
import torch
from support import (
    BACKENDS,
    SHAPES,
    assert_same_bits,
    device_of,
    make_params,
    set_gradients,
    steps_for,
    stream,
)
from support.plain import PLAIN, follow_schedule, plain_groups
from torch import Tensor

from sfplus_kernels import SGD, AdamC, AdamW

KINDS = pytest.mark.parametrize("name", PLAIN)
CORRECTED = [name for name in PLAIN if name != "adamw"]
ON_ALL = pytest.mark.parametrize("backend", BACKENDS)


def trajectory(
    optimizer: Any, params: list, steps: int, *, scheduled: bool = True, missing: float = 0.3
) -> list[list[Tensor]]:
    """The parameters after each step."""
    seen = []
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps, missing=missing)):
        if scheduled:
            follow_schedule(k, optimizer)
        set_gradients(params, gradients)
        optimizer.step()
        seen.append([p.detach().cpu().clone() for p in params])
    return seen


def few(backend: str, steps: int) -> int:
    """Where an interpreter is slow, as many as it takes to see that each coefficient is there."""
    return min(steps_for(backend, steps), 6 if backend == "triton" else steps)


def difference(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    pairs = [
        (a, b) for f, e in zip(found, expected, strict=True) for a, b in zip(f, e, strict=True)
    ]
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs if a.numel()
    )


@KINDS
@ON_ALL
@pytest.mark.parametrize("scheduled", [True, False])
def test_torchs_trajectory(name: str, backend: str, scheduled: bool) -> None:
    """In float64, with late gradients, two groups and one of them ascending."""
    member, steps = PLAIN[name], few(backend, 40)
    more = {"normalized": False} if name == "adamc" else {}
    params, others = make_params(device=device_of(backend)), make_params()
    mine = member.ours(plain_groups(params, name), backend=backend, **member.everything, **more)
    theirs = member.torchs(plain_groups(others, name), **member.everything)
    found = trajectory(mine, params, steps, scheduled=scheduled)
    expected = trajectory(theirs, others, steps, scheduled=scheduled)
    start = [p.detach() for p in make_params()]
    assert difference([expected[-1]], [start]) > 1e-2  # both stood still proves nothing
    assert difference(found, expected) < 1e-12


@pytest.mark.parametrize("name", CORRECTED)
@ON_ALL
@pytest.mark.parametrize("max_lr", [None, 0.04])
def test_corrected_decay_is_the_references(name: str, backend: str, max_lr: float | None) -> None:
    member, steps = PLAIN[name], steps_for(backend, 40)
    runs = []
    for make, where, more in (
        (member.ours, device_of(backend), {"backend": backend}),
        (member.reference, torch.device("cpu"), {}),
        (member.reference, torch.device("cpu"), {"normalized": False}),
    ):
        params = make_params(device=where)
        groups = plain_groups(params, name, normalized=False)
        arguments = {"normalized": True, **member.everything, **more}
        optimizer = make(groups, max_lr=max_lr, **arguments)
        runs.append(trajectory(optimizer, params, steps))
    found, expected, uncorrected = runs
    assert difference(found, expected) < 1e-12
    middle = len(SHAPES) // 2
    assert difference([expected[-1][:middle]], [uncorrected[-1][:middle]]) > 1e-3
    assert difference([expected[-1][middle:]], [uncorrected[-1][middle:]]) == 0


@pytest.mark.parametrize("max_lr", [None, 0.4])
def test_the_correction_by_hand(max_lr: float | None) -> None:
    """Without a gradient but zeros, a step is the decay alone: gamma^2 / gamma_max lambda x."""
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = AdamC([param], lr=0.2, weight_decay=0.5, max_lr=max_lr)
    x, largest = 1.0, 0.0
    for lr in (0.1, 0.2, 0.05, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.zeros_like(param)
        optimizer.step()
        largest = max(largest, lr)
        x -= lr * 0.5 * lr / (max_lr or largest) * x
        assert param.tolist() == pytest.approx([x] * 3, rel=1e-14)
    assert optimizer.metrics()["lr_max"] == [0.2]
    assert set(optimizer.metrics()) >= {"k", "scheduled_lr"}
    assert not {"ckp1", "weight_sum"} & set(optimizer.metrics())  # of averages there are none


@ON_ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@KINDS
def test_other_dtypes_are_near_float64(name: str, backend: str, dtype: torch.dtype) -> None:
    member, steps = PLAIN[name], few(backend, 20)
    params, others = make_params(dtype=dtype, device=device_of(backend)), make_params(dtype=dtype)
    exact = [torch.nn.Parameter(p.detach().double()) for p in others]
    mine = member.ours(plain_groups(params, name), backend=backend, **member.everything)
    theirs = member.reference(plain_groups(exact, name), **member.everything)
    for k, (_, gradients) in enumerate(stream(SHAPES, steps)):
        follow_schedule(k, mine, theirs)
        set_gradients(params, gradients)
        for p, q in zip(params, exact, strict=True):
            assert p.grad is not None
            q.grad = p.grad.cpu().double()
        mine.step()
        theirs.step()
    for p, q in zip(params, exact, strict=True):
        state = mine.state[p]
        held = state.get("master_param", p.detach())
        assert ("master_param" in state) == (dtype != torch.float32)
        assert held.dtype == torch.float32
        torch.testing.assert_close(held.cpu().double(), q.detach(), rtol=2e-5, atol=2e-5)
        assert torch.equal(p.detach(), held.to(dtype))
        assert set(state) - {"step", "master_param"} == member.buffers


@ON_ALL
@KINDS
def test_awkward_layouts(name: str, backend: str) -> None:
    """Transposed, with holes, 0-dim: as their contiguous copies."""
    member, device = PLAIN[name], device_of(backend)
    base = torch.randn(12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    views = [base.to(device).t(), base.clone().to(device)[::2, 1::3], base.sum().to(device)]
    params = [torch.nn.Parameter(v) for v in views]
    copies = [torch.nn.Parameter(v.detach().cpu().contiguous()) for v in views]
    assert not params[1].is_contiguous()
    mine = member.ours(params, backend=backend, **member.everything)
    theirs = member.ours(copies, backend="eager", **member.everything)
    trajectory(mine, params, 6)
    trajectory(theirs, copies, 6)
    for p, q in zip(params, copies, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-13, atol=1e-13)


@ON_ALL
@KINDS
def test_clipping_is_torchs(name: str, backend: str) -> None:
    member, steps = PLAIN[name], few(backend, 10)
    params, others = make_params(device=device_of(backend)), make_params()
    mine = member.ours(params, backend=backend, max_grad_norm=0.5, **member.everything)
    theirs = member.reference(others, **member.everything)
    for _, gradients in stream(SHAPES, steps):
        set_gradients(params, gradients)
        set_gradients(others, gradients)
        torch.nn.utils.clip_grad_norm_(others, 0.5)
        mine.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-6, atol=1e-6)


@ON_ALL
@KINDS
def test_a_step_that_is_skipped_changes_nothing(name: str, backend: str) -> None:
    member = PLAIN[name]
    params = make_params(device=device_of(backend))
    optimizer = member.ours(params, backend=backend, skip_nonfinite=True, **member.everything)
    trajectory(optimizer, params, 3, scheduled=False, missing=0)
    before = [p.detach().clone() for p in params]
    kept = [{n: v.clone() for n, v in optimizer.state[p].items()} for p in params]
    assert params[1].grad is not None
    params[1].grad[0] = math.nan
    optimizer.step()
    assert optimizer.metrics()["skipped_steps"] == 1
    assert optimizer.metrics()["k"] == 3
    for p, old, state in zip(params, before, kept, strict=True):
        assert torch.equal(p, old)
        for n, value in state.items():
            assert torch.equal(optimizer.state[p][n], value)


def test_modes_do_nothing() -> None:
    params = make_params([(5,)])
    optimizer = AdamW(params)
    trajectory(optimizer, params, 2)
    before = params[0].detach().clone()
    optimizer.eval()
    optimizer.train()
    with optimizer.averaged():
        assert torch.equal(params[0], before)
    optimizer.step()  # in no mode
    assert not torch.equal(params[0], before)
    model = torch.nn.Linear(2, 2)
    shipped = AdamW(model.parameters()).averaged_state_dict(model)
    assert_same_bits(dict(shipped), dict(model.state_dict()))
    assert shipped["weight"].data_ptr() != model.weight.data_ptr()


@ON_ALL
def test_groups_with_momentum_and_without(backend: str) -> None:
    params, others = make_params(device=device_of(backend)), make_params()
    middle, runs = len(params) // 2, []
    for make, its, more in ((SGD, params, {"backend": backend}), (torch.optim.SGD, others, {})):
        groups = [
            {"params": its[:middle], "momentum": 0.9, "nesterov": True},
            {"params": its[middle:]},
        ]
        optimizer: Any = make(groups, lr=0.01, weight_decay=0.2, **more)
        runs.append(trajectory(optimizer, its, few(backend, 20), scheduled=False))
    assert difference(*runs) < 1e-12


@pytest.mark.parametrize("name", ["adamc", "sgd"])
def test_a_gradient_scaler_is_taken_out(name: str) -> None:
    """And a step with an Inf in it is none."""
    member, runs = PLAIN[name], []
    for scaled in (False, True):
        (param,) = make_params([(6, 4)])
        optimizer = member.ours([param], **member.everything)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
        for k in range(6):
            optimizer.zero_grad()
            scaler.scale((param * (k - 2.5)).square().sum()).backward()
            assert param.grad is not None
            if k == 3 and scaled:
                param.grad[0, 0] = math.inf
            if k != 3 or scaled:
                scaler.step(optimizer)
            scaler.update()
        runs.append(param.detach())
        assert optimizer.metrics()["k"] == 5
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


def test_the_gradient_stays_where_a_schedule_ends() -> None:
    """What the correction is for (arXiv 2506.02285), on weights whose norm does not matter.

    Their gradient is orthogonal to them and goes with 1 / |x|. Steps that make |x| grow and decay balance: at
    a norm that falls with gamma under AdamW, and at one that does not under AdamC.
    """
    steps, growth = 600, {}
    for make in (AdamW, AdamC):
        generator = torch.Generator().manual_seed(0)
        param = torch.nn.Parameter(torch.randn(2000, dtype=torch.float64, generator=generator))
        optimizer = make([param], lr=0.05, betas=(0.0, 0.99), weight_decay=1.0)
        norms = []
        for k in range(steps):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - k / steps)
            x = param.detach()
            g = torch.randn(2000, dtype=torch.float64, generator=generator)
            g -= (g @ x) / (x @ x) * x
            param.grad = g / x.norm()
            norms.append(float(param.grad.norm()))
            optimizer.step()
        growth[make] = sum(norms[-30:]) / sum(norms[steps // 4 : steps // 4 + 30])
    assert growth[AdamW] > 2
    assert growth[AdamC] == pytest.approx(1, abs=0.15)
