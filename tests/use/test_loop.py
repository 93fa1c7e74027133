"""What a training loop does around a step: clip, scale, accumulate."""

import copy
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
    ScheduleFreeWrapper,
    SFPlusWarning,
    SGDScheduleFree,
    add_loss,
    report_loss,
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


# -- automatic mixed precision ---------------------------------------------------------------------

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


# -- accumulation ----------------------------------------------------------------------------------


class Wrapped:
    """As Accelerate's AcceleratedOptimizer and Lightning's LightningOptimizer hold theirs."""

    def __init__(self, optimizer: Any, name: str) -> None:
        setattr(self, name, optimizer)
        self.param_groups = optimizer.param_groups


@pytest.mark.parametrize("kind", ["float", "tensor", "wrapped", "wrapped twice"])
def test_reported_losses_make_their_weighted_mean(backend: str, kind: str) -> None:
    reported = AdamCScheduleFreePlus(params := make_params(device=device_of(backend)))
    given = AdamCScheduleFreePlus(others := make_params(device=device_of(backend)))
    for each in (reported, given):
        each.train()
    target: Any = reported
    if kind.startswith("wrapped"):
        target = Wrapped(reported, "optimizer")
    if kind == "wrapped twice":
        target = Wrapped(target, "_optimizer")
    for loss, gradients in stream(SHAPES, 4):
        for its in (params, others):
            set_gradients(its, gradients)
        for share, weight in ((0.5, 1.0), (2.0, 3.0)):
            value: Any = loss * share
            report_loss(target, torch.tensor(value) if kind == "tensor" else value, weight)
        reported.step()
        given.step(loss=(0.5 * loss * 1 + 2 * loss * 3) / 4)
    assert reported.metrics()["function_value"] == pytest.approx(1.625 * loss, rel=1e-6)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="got no loss.*report_loss"):
        reported.step()  # they count for one step only


def test_report_loss_refuses_what_needs_none() -> None:
    with pytest.raises(TypeError, match="got a SGD; expected an optimizer of sfplus_kernels"):
        report_loss(torch.optim.SGD(make_params([(3,)]), lr=0.1), 1.0)
    report_loss(SGDScheduleFree(make_params([(3,)])), 1.0)  # one loop for all classes
    optimizer = AdamCScheduleFreePlus(make_params([(3,)]))
    with pytest.raises(ValueError, match=r"loss has shape \(2,\)"):
        report_loss(optimizer, torch.ones(2))
    report_loss(optimizer, 1.0)
    assert copy.deepcopy(optimizer).loss_reports.take() is None
    assert optimizer.loss_reports.take() == 1.0


def test_parts_of_a_loss_are_added_up(backend: str) -> None:
    """add_loss: what backward() was called on, whatever it was divided by."""
    told = AdamCScheduleFreePlus(params := make_params(device=device_of(backend)))
    given = AdamCScheduleFreePlus(others := make_params(device=device_of(backend)))
    for each in (told, given):
        each.train()
    for loss, gradients in stream(SHAPES, 4):
        for its in (params, others):
            set_gradients(its, gradients)
        for part in (0.5 * loss, torch.tensor(0.25 * loss, dtype=torch.float64), 0.25 * loss):
            add_loss(told, part)
        told.step()
        given.step(loss=loss)
        assert told.metrics()["function_value"] == pytest.approx(loss)
    assert_same_bits([p.detach() for p in params], [p.detach() for p in others])


def test_which_loss_counts() -> None:
    """Given, else told of, else the closure's; what was told is for one step, whether it counted or not."""
    optimizer = AdamCScheduleFreePlus(params := make_params([(3,)]))
    optimizer.train()
    set_gradients(params, [torch.ones(3)])

    def step(expected: float, **arguments: Any) -> None:
        optimizer.step(**arguments)
        assert optimizer.metrics()["function_value"] == expected

    report_loss(optimizer, 2.0)
    step(5.0, loss=5.0)
    with pytest.raises(ValueError, match="got no loss"):
        optimizer.step()
    report_loss(optimizer, 2.0)
    step(2.0, closure=lambda: 7.0)
    step(7.0, closure=lambda: 7.0)
    add_loss(optimizer, 1.0)
    step(4.0, closure=lambda: add_loss(optimizer, 3.0))
    assert (
        optimizer.step(lambda: None, loss=6.0) is None
    )  # as trainers pass one that returns nothing
    assert optimizer.metrics()["function_value"] == 6.0
    add_loss(optimizer, 1.0)
    with pytest.raises(ValueError, match="by report_loss .* and by add_loss"):
        report_loss(optimizer, 1.0)
    optimizer.step()
    report_loss(optimizer, 1.0)
    with pytest.raises(ValueError, match="by report_loss .* and by add_loss"):
        add_loss(optimizer, 1.0)


# -- warnings --------------------------------------------------------------------------------------


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


def test_a_learning_rate_that_falls_is_found() -> None:
    """Once; not where it rises, and not where it is that of the base of a wrapper."""
    for make in (AdamWScheduleFree, AdamWScheduleFreeClosure, AdamCScheduleFreePlus):
        optimizer = make(params := make_params([(3,)]), lr=0.1)
        optimizer.train()

        def step(lr: float, optimizer: Any = optimizer, params: Any = params) -> None:
            optimizer.param_groups[0]["lr"] = lr

            def closure() -> float:
                set_gradients(params, [torch.ones(3)])
                return 1.0

            optimizer.step(closure)

        for lr in (0.01, 0.1, 0.1):
            step(lr)
        with pytest.warns(SFPlusWarning, match=r"\[scheduler\] *: lr was lowered from 0.1 to 0.09"):
            step(0.09)
        step(0.08)
    wrapper = ScheduleFreeWrapper(torch.optim.SGD(params := make_params([(3,)]), lr=0.1))
    wrapper.train()
    for lr in (0.1, 0.05):
        wrapper.param_groups[0]["lr"] = lr
        set_gradients(params, [torch.ones(3)])
        wrapper.step()
