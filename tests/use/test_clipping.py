"""Gradients that are clipped: inside, by ``max_grad_norm``; outside, told of by ``clip_coef`` or found."""

from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    SHAPES,
    assert_same_bits,
    device_of,
    make_params,
    run,
    set_gradients,
    snapshot,
    steps_for,
    stream,
)
from torch import Tensor, nn

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    SFPlusWarning,
    SGDScheduleFree,
)
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

NORM = 1.0
"""Below the norm of most gradients of the stream, above that of some."""


def clipped(gradients: list[Tensor | None], max_norm: float) -> float:
    """Clip in place, as torch does; the factor."""
    params = [nn.Parameter(torch.zeros_like(g)) for g in gradients if g is not None]
    for p, g in zip(params, [g for g in gradients if g is not None], strict=True):
        p.grad = g
    norm = float(nn.utils.clip_grad_norm_(params, max_norm))
    return min(1.0, max_norm / (norm + 1e-6))


class ClippedReference(AdamCScheduleFreePlusReference):
    """gamma from the unclipped gradients, moments from the clipped ones."""

    def step_one(self, p: Tensor, *args: Any, **kwargs: Any) -> None:
        assert p.grad is not None
        everything = [q for group in self.param_groups for q in group["params"]]
        squares = [q.grad.square().sum() for q in everything if q.grad is not None]
        norm = float(torch.stack(squares).sum().sqrt())
        whole = p.grad
        p.grad = whole * min(1.0, NORM / (norm + 1e-6))
        super().step_one(p, *args, **kwargs)
        p.grad = whole


def scaled_stream(steps: int) -> list[tuple[float, list[Tensor | None]]]:
    """Gradients whose norms lie around NORM: some steps are clipped, some are not."""
    return [
        (loss, [None if g is None else g * 0.004 * 4 ** (k % 4) for g in gradients])
        for k, (loss, gradients) in enumerate(stream(SHAPES, steps, missing=0.2))
    ]


def test_max_grad_norm_clips_the_moments_and_not_the_polyak_step(backend: str) -> None:
    params, truth = make_params(device=device_of(backend)), make_params()
    optimizer = AdamCScheduleFreePlus(params, backend=backend, max_grad_norm=NORM, **EVERYTHING)
    reference = ClippedReference(truth, **EVERYTHING)
    plain = AdamCScheduleFreePlusReference(others := make_params(), **EVERYTHING)
    factors = []
    for each in (optimizer, reference, plain):
        each.train()
    for loss, gradients in scaled_stream(steps_for(backend, 60)):
        for its, each in ((params, optimizer), (truth, reference), (others, plain)):
            set_gradients(its, gradients)
            each.step(loss=loss)
        factors.append(clipped([None if g is None else g.clone() for g in gradients], NORM))
        norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
        assert optimizer.metrics()["grad_norm"] == pytest.approx(float(norm), rel=1e-12)
    assert min(factors) < 0.5
    assert max(factors) == 1
    for p, q, o in zip(params, truth, others, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-11, atol=1e-13)
        assert p.numel() == 0 or not torch.allclose(q, o, rtol=1e-6)


@pytest.mark.parametrize("make", [AdamWScheduleFree, SGDScheduleFree])
def test_max_grad_norm_is_clip_grad_norm(backend: str, make: Any) -> None:
    params, truth = make_params(device=device_of(backend)), make_params()
    ours = make(params, lr=0.1, backend=backend, max_grad_norm=NORM)
    outside = make(truth, lr=0.1, backend="eager")
    ours.train()
    outside.train()
    for _, gradients in scaled_stream(steps_for(backend, 30)):
        set_gradients(params, gradients)
        before = [None if p.grad is None else p.grad.clone() for p in params]
        ours.step()
        assert_same_bits([p.grad for p in params], before)  # unlike clip_grad_norm_
        set_gradients(truth, gradients)
        nn.utils.clip_grad_norm_(truth, NORM)
        outside.step()
        metrics = ours.metrics()
        assert float(ours.param_groups[0]["scheduled_lr"]) == pytest.approx(0.1)
        assert metrics["k"] == outside.metrics()["k"]
    for p, q in zip(params, truth, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-11, atol=1e-13)


def test_clip_coef_gives_the_polyak_step_of_the_unclipped_gradients(backend: str) -> None:
    """Upstream's enlarges gamma: clipping shrinks the L1 norm, but not the loss.

    The factor is a number or a tensor, by turns.
    """
    device = device_of(backend)
    inside = AdamCScheduleFreePlus(
        params := make_params(device=device), backend=backend, max_grad_norm=NORM, **EVERYTHING
    )
    outside = AdamCScheduleFreePlus(
        others := make_params(device=device), backend=backend, **EVERYTHING
    )
    unaware = AdamCScheduleFreePlus(
        more := make_params(device=device), backend=backend, **EVERYTHING
    )
    enlarged = []
    for each in (inside, outside, unaware):
        each.train()
    clipped = set()
    for k, (loss, gradients) in enumerate(scaled_stream(12)):
        set_gradients(params, gradients)
        inside.step(loss=loss)
        for its, each in ((others, outside), (more, unaware)):
            set_gradients(its, gradients)
            norm = nn.utils.clip_grad_norm_(its, NORM)
            coef: Any = (NORM / (norm + 1e-6)).clamp(max=1)
            coef = coef if k % 2 else float(coef)
            if coef < 0.9:
                clipped.add(type(coef))
            each.step(loss=loss, **({"clip_coef": coef} if each is outside else {}))
        assert outside.metrics()["polyak_lr"] == pytest.approx(inside.metrics()["polyak_lr"])
        enlarged.append(unaware.metrics()["polyak_lr"] / inside.metrics()["polyak_lr"])
    assert max(enlarged) > 2
    assert clipped == {float, Tensor}
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-9, atol=1e-11)


def test_clipping_twice_is_refused() -> None:
    optimizer = AdamCScheduleFreePlus(params := make_params([(3,)]), max_grad_norm=1.0)
    run(optimizer, params, 2)
    before = snapshot(optimizer, params)
    set_gradients(params, [torch.ones(3)])
    with pytest.raises(ValueError, match="clip_coef, but max_grad_norm is 1.0"):
        optimizer.step(loss=1.0, clip_coef=0.5)
    assert_same_bits(snapshot(optimizer, params), before)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_grad_norm is"):
            AdamWScheduleFree(make_params([(3,)]), max_grad_norm=bad)


def test_closure_form_puts_x_back_when_max_grad_norm_may_skip() -> None:
    optimizer = AdamWScheduleFreeClosure(params := make_params([(5,), (3,)]), max_grad_norm=1.0)
    for _, gradients in stream([(5,), (3,)], 4):
        optimizer.step(lambda gradients=gradients: set_gradients(params, gradients))
    x = [p.detach().clone() for p in params]
    bad = [torch.full((5,), float("nan")), torch.ones(3)]
    optimizer.step(lambda: set_gradients(params, bad))
    for p, old in zip(params, x, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=1e-14, atol=1e-15)
    assert optimizer.metrics()["skipped_steps"] == 1


def clipped_steps(optimizer: Any, params: Any, count: int, clip: Any) -> None:
    for k, (loss, gradients) in enumerate(stream(SHAPES, count)):
        set_gradients(params, gradients)
        if clip(k):
            nn.utils.clip_grad_norm_(params, 0.5)
        optimizer.step(loss=0.01 * loss)


def test_gradients_that_were_clipped_before_are_found() -> None:
    """Once, at some look at the figures, of which there is one every eight steps."""
    optimizer = AdamCScheduleFreePlus(params := make_params(), lr=0.01)
    optimizer.train()
    with pytest.warns(SFPlusWarning, match=r"\[clipped\].*max_grad_norm=0.5"):
        clipped_steps(optimizer, params, 34, lambda k: True)
    clipped_steps(optimizer, params, 34, lambda k: True)


def test_gradients_that_were_not_clipped() -> None:
    """Some are, some are not; none is, by others than the optimizer; one whole batch that hardly changes."""
    for clip, inside in ((lambda k: k % 16 < 8, None), (lambda k: False, 0.5)):
        optimizer = AdamCScheduleFreePlus(params := make_params(), lr=0.01, max_grad_norm=inside)
        optimizer.train()
        clipped_steps(optimizer, params, 40, clip)
    optimizer = AdamCScheduleFreePlus(params := make_params([(64,)]), lr=0.01)
    optimizer.train()
    set_gradients(params, [torch.linspace(-1, 1, 64, dtype=torch.float64)])
    for _ in range(40):
        optimizer.step(loss=0.01)
