"""torch's gradient scaler around a step: as without one, and a step that overflows changes nothing."""

from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    SHAPES,
    assert_same_bits,
    device_of,
    make_params,
    set_gradients,
    snapshot,
    stream,
)

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree

CLASSES = {
    "plus": (AdamCScheduleFreePlus, EVERYTHING),
    "adamw": (AdamWScheduleFree, {"lr": 0.02, "weight_decay": 0.1, "warmup_steps": 5}),
    "sgd": (SGDScheduleFree, {"lr": 0.02, "weight_decay": 0.1, "skip_nonfinite": True}),
}


def step(optimizer: Any, loss: float, scaler: Any = None) -> None:
    needs = {"loss": loss} if isinstance(optimizer, AdamCScheduleFreePlus) else {}
    if scaler is None:
        optimizer.step(**needs)
    else:
        scaler.step(optimizer, **needs)
        scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_gradient_scaler(backend: str, name: str, unscale: bool) -> None:
    """As without one; a step that overflows leaves everything as it was, k included."""
    make, arguments = CLASSES[name]
    device = device_of(backend)
    scaled = make(params := make_params(dtype=torch.float32, device=device), **arguments)
    plain = make(others := make_params(dtype=torch.float32, device=device), **arguments)
    for each in (scaled, plain):
        each.train()
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, growth_interval=4)
    scales = []
    for k, (loss, gradients) in enumerate(stream(SHAPES, 10)):
        overflows = k in (1, 4)
        scale = float(scaler.scale(torch.ones((), device=device)))
        scales.append(scale)
        set_gradients(params, [None if g is None else g * scale for g in gradients])
        if overflows:
            assert params[3].grad is not None
            params[3].grad.fill_(float("inf"))
            before = snapshot(scaled, params)
        memory = [p.grad.clone() for p in params if p.grad is not None]
        if unscale:
            scaler.unscale_(scaled)
        step(scaled, loss, scaler)
        if not unscale:  # the scaler leaves the gradients to us, and we leave them alone
            assert_same_bits([p.grad for p in params if p.grad is not None], memory)
        if overflows:
            assert_same_bits(snapshot(scaled, params), before)
        else:
            set_gradients(others, gradients)
            step(plain, loss)
        assert float(scaled.param_groups[0]["scheduled_lr"]) == pytest.approx(
            float(plain.param_groups[0]["scheduled_lr"]), rel=1e-6
        )
    assert len(set(scales)) > 2
    assert scaled.metrics()["k"] == plain.metrics()["k"] == 8
    assert scaled.metrics()["skipped_steps"] == 2
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=2e-5, atol=2e-6)


def test_scaler_may_come_and_go() -> None:
    """Without it afterwards, the scale is 1 again and the host counts steps again."""
    optimizer = AdamWScheduleFree(params := make_params([(5,)]), lr=0.1, warmup_steps=10)
    other = AdamWScheduleFree(others := make_params([(5,)]), lr=0.1, warmup_steps=10)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.train()
    other.train()
    for k, (loss, gradients) in enumerate(stream([(5,)], 8)):
        use = k in (2, 3)
        scale = float(scaler.scale(torch.ones(()))) if use else 1.0
        set_gradients(params, [g * scale for g in gradients if g is not None])
        step(optimizer, loss, scaler if use else None)
        set_gradients(others, gradients)
        step(other, loss)
        assert float(optimizer.param_groups[0]["scheduled_lr"]) == pytest.approx(0.01 * (k + 1))
        if k == 5:
            optimizer.state_dict()
    assert isinstance(optimizer.param_groups[0]["scheduled_lr"], float)
    assert optimizer.metrics()["k"] == 8
    torch.testing.assert_close(params[0].detach(), others[0].detach(), rtol=1e-12, atol=1e-12)
