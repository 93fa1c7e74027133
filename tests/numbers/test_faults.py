"""Faults of the upstream reference that this package does not have; numbers as in docs/algorithm.md."""

import math

import pytest
import torch
from support import (
    EVERYTHING,
    assert_same_bits,
    device_of,
    make_params,
    run,
    set_gradients,
    snapshot,
    steps_for,
    stream,
    two_groups,
)

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.reference import AdamCScheduleFreePlusReference


def test_fault_1_ema_stays_raw(backend: str) -> None:
    """Constant gradients: the corrected EMA is the gradient's L1 norm at every step.

    Upstream writes the corrected EMA back and is 5.3 times too large at step 2, 199 times at step 6.
    """
    params = make_params([(10,)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, lr=1e-6, polyak_beta=0.9, backend=backend)
    optimizer.train()
    for k in range(6):
        set_gradients(params, [torch.full((10,), 0.5, dtype=torch.float64)])
        optimizer.step(loss=1.0)
        figures = optimizer.metrics()
        l1 = math.sqrt(math.pi / 2) * 5
        assert figures["grad_l1_ema"] == pytest.approx(l1 * (1 - 0.9 ** (k + 1)), rel=1e-12)
        assert isinstance(figures["ip_term"], float)
        assert figures["polyak_lr"] == pytest.approx((1 + figures["ip_term"]) / l1, rel=1e-12)


def test_fault_4_all_zero_gradients(backend: str) -> None:
    """gamma is 0 and nothing moves; upstream divides by zero."""
    params = make_params([(10,), (3, 3)], device=device_of(backend))
    before = [p.detach().clone() for p in params]
    optimizer = AdamCScheduleFreePlus(params, weight_decay=1.0, backend=backend)
    optimizer.train()
    for _ in range(2):
        set_gradients(params, [torch.zeros(10), torch.zeros(3, 3)])
        optimizer.step(loss=1.0)
    figures = optimizer.metrics()
    assert (figures["k"], figures["skipped_steps"]) == (2, 0)
    assert figures["scheduled_lr"] == [0.0]
    for p, old in zip(params, before, strict=True):
        assert torch.equal(p.detach(), old)
    set_gradients(params, [torch.ones(10), torch.ones(3, 3)])
    optimizer.step(loss=1.0)
    assert all(not torch.equal(p.detach(), old) for p, old in zip(params, before, strict=True))
    assert all(bool(p.isfinite().all()) for p in params)


def test_fault_4_no_gradients_at_all(backend: str) -> None:
    """A no-op that says so; upstream raises an unrelated error."""
    params = make_params(device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING)
    optimizer.train()
    optimizer.step(loss=1.0)
    assert optimizer.metrics()["no_gradients"] == 1
    assert optimizer.metrics()["k"] == 0
    assert not optimizer.state
    run(optimizer, params, 3)
    before = snapshot(optimizer, params)
    for p in params:
        p.grad = None
    optimizer.step(loss=1.0)
    assert optimizer.metrics()["no_gradients"] == 1
    assert_same_bits(snapshot(optimizer, params), before)
    run(optimizer, params, 1)
    assert optimizer.metrics()["no_gradients"] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [False, True])
def test_fault_4_non_finite_step_is_skipped(backend: str, dtype: torch.dtype, first: bool) -> None:
    """Bit for bit as before, counted, and training goes on as if the steps had not been asked for.

    1e20 is finite, but its square overflows float32 and would freeze its element for good.
    """
    inf, nan = float("inf"), float("nan")
    large = 1e200 if dtype == torch.float64 else 1e20
    bad_steps = [(loss, 0.0) for loss in (nan, inf, -inf)]
    bad_steps += [(1.0, gradient) for gradient in (nan, inf, -inf, large)]
    shapes = [(0,), (37,), (5, 3), (0,)]
    device = device_of(backend)
    params, twins = make_params(shapes, dtype, device), make_params(shapes, dtype, device)
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    twin = AdamCScheduleFreePlus(two_groups(twins), backend=backend, **EVERYTHING)
    optimizer.train()
    twin.train()
    for k, (value, gradients) in enumerate(stream(shapes, 6)):
        if k == (0 if first else 3):
            for skipped, (loss, gradient) in enumerate(bad_steps, 1):
                bad = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
                bad[1][36] = gradient  # the very last element
                before = snapshot(optimizer, params) if optimizer.state else None
                set_gradients(params, bad)
                optimizer.step(loss=torch.tensor(loss))
                if before is not None:
                    after = snapshot(optimizer, params)
                    assert_same_bits(after, before, f"loss {loss}, gradient {gradient}")
                figures = optimizer.metrics()
                assert figures["skipped_steps"] == figures["consecutive_skipped_steps"] == skipped
                assert figures["k"] == k
        set_gradients(params, gradients)
        set_gradients(twins, gradients)
        optimizer.step(loss=value)
        twin.step(loss=value)
        assert optimizer.metrics()["consecutive_skipped_steps"] == 0
    assert_same_bits(snapshot(optimizer, params), snapshot(twin, twins))
    assert optimizer.metrics()["skipped_steps"] == len(bad_steps)


@pytest.mark.parametrize("loss", [-1.0, 0.0])
def test_negative_loss_gives_gamma_zero(backend: str, loss: float) -> None:
    params = make_params([(10,)], device=device_of(backend))
    before = params[0].detach().clone()
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
    optimizer.train()
    set_gradients(params, [torch.ones(10)])
    optimizer.step(loss=loss)
    assert optimizer.metrics()["scheduled_lr"] == [0.0]
    assert optimizer.metrics()["skipped_steps"] == 0
    assert torch.equal(params[0].detach(), before)


def test_coefficients_that_overflow_float32_skip_the_step(backend: str) -> None:
    """A tiny gradient under a large loss asks for a step that float32 cannot express."""
    params = make_params([(10,)], torch.float32, device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, weight_decay=1.0, backend=backend)
    run(optimizer, params, 2)
    before = snapshot(optimizer, params)
    set_gradients(params, [torch.full((10,), 1e-35, dtype=torch.float64)])
    optimizer.step(loss=1e3)
    assert optimizer.metrics()["skipped_steps"] == 1
    assert_same_bits(snapshot(optimizer, params), before)


def test_fault_5_late_first_gradient_has_its_own_bias_correction(backend: str) -> None:
    """The first step of a tensor is about gamma per element, however late it comes.

    With the group's count, as upstream, it would be up to 1 / sqrt(1 - beta2) = 4.5 times that.
    """
    params = make_params([(4,), (4,)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(
        params, betas=(0.0, 0.95), lr=0.01, sf_beta1=0.0, backend=backend
    )
    optimizer.train()
    one = torch.ones(4, dtype=torch.float64)
    steps = steps_for(backend, 100)
    for _ in range(steps):
        set_gradients(params, [one, None])
        optimizer.step(loss=1.0)
    assert params[1] not in optimizer.state
    before = params[1].detach().clone()
    set_gradients(params, [one, one])
    optimizer.step(loss=1.0)
    gamma = optimizer.metrics()["scheduled_lr"][0]  # type: ignore[index]
    moved = (before - params[1].detach()).cpu()  # beta is 0, so y is z
    torch.testing.assert_close(moved, gamma * one, rtol=1e-6, atol=0)
    assert float(optimizer.state[params[1]]["step"]) == 1
    assert float(optimizer.state[params[0]]["step"]) == steps + 1


def test_annealing_with_parameters_that_miss_gradients(backend: str) -> None:
    """y of a tensor was written with the beta of its own last step, not with the current one."""
    shapes = [(6,), (5,), (4,)]
    kwargs = {"sf_beta1": 0.3, "sf_beta1_max": 0.98, "sf_beta1_anneal_steps": 20, "lr": 0.2}
    params, truth = make_params(shapes, device=device_of(backend)), make_params(shapes)
    optimizer = AdamCScheduleFreePlus(params, backend=backend, **kwargs)  # type: ignore[arg-type]
    reference = AdamCScheduleFreePlusReference(truth, **kwargs)  # type: ignore[arg-type]
    optimizer.train()
    reference.train()
    for k, (loss, gradients) in enumerate(stream(shapes, 25)):
        if 5 <= k < 15:
            gradients[1] = None  # misses half of the annealing
        if k >= 10:
            gradients[2] = None  # and never comes back
        for ps, o in ((params, optimizer), (truth, reference)):
            set_gradients(ps, gradients)
            o.step(loss=loss)  # type: ignore[attr-defined]
        if k in (12, 20):
            optimizer.eval()
            for p, t in zip(params, truth, strict=True):
                x = reference.state[t]["x"]
                torch.testing.assert_close(p.detach().cpu(), x, rtol=1e-10, atol=1e-12)
            optimizer.train()
    # one beta for all: a tensor that gets no gradient follows it
    assert optimizer.state_dict()["param_groups"][0]["y_beta"] == pytest.approx(0.98)
    for p, t in zip(params, truth, strict=True):
        for name, value in optimizer.iterates(p)._asdict().items():
            torch.testing.assert_close(
                value.cpu(), reference.state[t][name], rtol=1e-10, atol=1e-12
            )
