"""The oracle itself, against steps computed by hand."""

import math

import pytest
import torch

from sfplus_kernels.reference import AdamCScheduleFreePlusReference

ROOT = math.sqrt(math.pi / 2)


def make(
    value: float, **arguments: object
) -> tuple[torch.nn.Parameter, AdamCScheduleFreePlusReference]:
    p = torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))
    optimizer = AdamCScheduleFreePlusReference([p], **arguments)  # type: ignore[arg-type]
    optimizer.train()
    return p, optimizer


def test_first_step_by_hand() -> None:
    # one element, g = 2, f = 3: gamma = 3 / (sqrt(pi/2) * 2); u = 1 up to eps; c = 1, so x = z
    p, optimizer = make(1.0, eps=1e-300)
    p.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step(loss=3.0)
    gamma = 3 / (ROOT * 2)
    state = optimizer.state[p]
    for name in "xyz":
        assert state[name].item() == pytest.approx(1 - gamma, rel=1e-14)
    assert optimizer.param_groups[0]["scheduled_lr"] == pytest.approx(gamma, rel=1e-14)


def test_two_steps_by_hand() -> None:
    p, optimizer = make(
        1.0,
        lr=0.5,
        betas=(0.5, 0.75),
        sf_beta1=0.8,
        eps=1e-300,
        weight_decay=0.1,
        weight_lr_power=1,
    )
    p.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step(loss=3.0)
    gamma0 = 0.5 * 3 / (ROOT * 2)
    z1 = 1 - gamma0 - gamma0**2 * 0.1  # u = 1, decay at y = 1
    assert p.item() == pytest.approx(z1, rel=1e-14)

    p.grad = torch.tensor([-1.0], dtype=torch.float64)
    optimizer.step(loss=0.5)
    gamma1 = 0.5 * 0.5 / ROOT  # z = x, so the inner product is 0
    m_hat = (0.5 * 1.0 + 0.5 * -1.0) / (1 - 0.5**2)
    v_hat = (0.75 * 1.0 + 0.25 * 1.0) / (1 - 0.75**2)
    z2 = z1 - gamma1 * m_hat / math.sqrt(v_hat) - gamma1**2 * 0.1 * z1
    c = gamma0 / (gamma0 + gamma0)  # lr_max stays gamma0, power 1
    x2 = (1 - c) * z1 + c * z2
    y2 = 0.8 * x2 + 0.2 * z2
    state = optimizer.state[p]
    for name, expected in (("z", z2), ("x", x2), ("y", y2)):
        assert state[name].item() == pytest.approx(expected, rel=1e-13), name

    # third step: the inner product beta g (z - x) enters the step size
    p.grad = torch.tensor([4.0], dtype=torch.float64)
    optimizer.step(loss=10.0)
    expected = 0.5 * (10 + 0.8 * 4 * (z2 - x2)) / (ROOT * 4)
    assert optimizer.param_groups[0]["scheduled_lr"] == pytest.approx(expected, rel=1e-13)


def test_annealing_by_hand() -> None:
    _, optimizer = make(1.0, sf_beta1=0.5, sf_beta1_max=0.98, sf_beta1_anneal_steps=4)
    # 1 - beta goes geometrically from 0.5 to 0.02: half-way it is 0.1
    assert optimizer.momentum(0) == pytest.approx(0.5, rel=1e-15)
    assert optimizer.momentum(2) == pytest.approx(0.9, rel=1e-15)
    assert optimizer.momentum(4) == pytest.approx(0.98, rel=1e-15)
    assert optimizer.momentum(100) == pytest.approx(0.98, rel=1e-15)


def test_ema_by_hand() -> None:
    p, optimizer = make(1.0, polyak_beta=0.9, lr=1e-3)
    for step, g in enumerate((1.0, 3.0)):
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step(loss=1.0)
        if step == 0:
            assert optimizer.polyak_lr == pytest.approx(1 / ROOT, rel=1e-14)
    corrected = (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.81) * ROOT
    assert optimizer.polyak_lr == pytest.approx(1 / corrected, rel=1e-13)


def test_c_warmup_and_weights_by_hand() -> None:
    p, optimizer = make(1.0, c_warmup=2, r=1, weight_lr_power=0, lr=1e-3)
    expected = [1, 1, 1, 4 / 7, 5 / 12]  # 1, 1, then (k+1) / sum from k = 2 on
    for c in expected:
        p.grad = torch.tensor([1.0], dtype=torch.float64)
        optimizer.step(loss=1.0)
        assert optimizer.param_groups[0]["ckp1"] == pytest.approx(c, rel=1e-15)


def test_eval_and_train_put_x_and_y() -> None:
    p, optimizer = make(1.0)
    for g in (1.0, -2.0, 0.5):
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step(loss=1.0)
    y = p.item()
    optimizer.eval()
    assert p.item() == optimizer.state[p]["x"].item() != y
    optimizer.train()
    assert p.item() == y
