"""``skip_nonfinite=True``: a gradient that is not finite changes nothing but the counters."""

import copy
import functools
from typing import Any

import pytest
import torch
from support import BACKENDS, assert_same_bits, device_of, make_params, set_gradients, stream
from support.family import FAMILY, PLAIN, drive, groups_of, step_with
from support.plain import PLAIN as WITHOUT_AVERAGES
from support.plain import plain_groups
from torch import Tensor

from sfplus_kernels.contract.layout import Move

SHAPES = [(0,), (7,), (33, 5), (), (300,), (0,)]
COUNTERS = ("skipped_steps", "consecutive_skipped_steps")


PLAIN_NAMES = {f"plain {name}": name for name in WITHOUT_AVERAGES}
OPEN = [*PLAIN, *PLAIN_NAMES]  # those whose gradients are there before the step
ALL = [*FAMILY, *PLAIN_NAMES]


def make(name: str, backend: str = "cpu", dtype: Any = torch.float64, **more: Any) -> tuple:
    params = make_params(SHAPES, dtype, device_of(backend))
    averages = name in FAMILY
    member = FAMILY[name] if averages else WITHOUT_AVERAGES[PLAIN_NAMES[name]]
    groups = groups_of(params, name) if averages else plain_groups(params, PLAIN_NAMES[name])
    arguments = {**member.everything, "skip_nonfinite": True, **more}
    return member.ours(groups, backend=backend, **arguments), params


def snapshot(optimizer: Any, params: list) -> Any:
    """Everything that a step may change, counters apart."""
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        for key in (*COUNTERS, "skip_nonfinite"):
            group.pop(key)
    return state, [p.detach().clone() for p in params]


def spoiled(gradients: list, tensor: int, value: float) -> list:
    """The last element of one tensor's gradient is ``value``."""
    bad = [None if g is None else g.clone() for g in gradients]
    bad[tensor].view(-1)[-1] = value
    return bad


# which of the tensors (the first with elements, middle, last), what in it, dtype of the parameters
FAULTS = [
    (1, float("nan"), torch.float64),
    (2, float("inf"), torch.float32),
    (4, -float("inf"), torch.bfloat16),
    (3, 1e20, torch.float32),  # finite, but its square is not
]
CASES = [
    (backend, name, *fault)
    for backend in BACKENDS
    for number, name in enumerate(OPEN)
    for place, fault in enumerate(FAULTS)
    if backend != "triton" or place == number % len(FAULTS)
]


@pytest.mark.parametrize(("backend", "name", "tensor", "value", "dtype"), CASES)
def test_step_is_as_if_it_had_not_happened(
    backend: str, name: str, tensor: int, value: float, dtype: torch.dtype
) -> None:
    """Bit for bit, also as the first step, and twice in a row; the twin does not look at all."""
    optimizer, params = make(name, backend, dtype)
    twin, twins = make(name, backend, dtype, skip_nonfinite=False)
    optimizer.train()
    twin.train()
    for k, (_, gradients) in enumerate(stream(SHAPES, 4)):
        for row in range(1, 3 if k in (0, 2) else 1):
            before = snapshot(optimizer, params)
            set_gradients(params, spoiled(gradients, tensor, value))
            optimizer.step()
            after = snapshot(optimizer, params)
            figures = optimizer.metrics()
            assert (figures["k"], figures["consecutive_skipped_steps"]) == (k, row)
            assert_same_bits(after[1], before[1])
            if before[0]["state"]:  # the first call makes it
                assert_same_bits(after, before)
        for o, its in ((optimizer, params), (twin, twins)):
            set_gradients(its, gradients)
            o.step()
        for group in optimizer.param_groups:  # read while the twin's is a float
            assert isinstance(group["scheduled_lr"], Tensor)
            assert group["scheduled_lr"].dim() == 0
        seen = [float(group["scheduled_lr"]) for group in optimizer.param_groups]
        assert seen == pytest.approx([g["scheduled_lr"] for g in twin.param_groups], rel=1e-14)
        assert all(type(group["scheduled_lr"]) is float for group in twin.param_groups)
    assert_same_bits(snapshot(optimizer, params), snapshot(twin, twins))
    figures = optimizer.metrics()
    assert [figures[key] for key in COUNTERS] == [4, 0]
    assert figures["grad_norm"] == pytest.approx(
        float(torch.stack([p.grad.double().square().sum() for p in params]).sum().sqrt()), rel=1e-2
    )


class Recorder:
    """Stands before a backend and notes which passes were asked for."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.passes = backend, []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.backend, name)
        if name not in ("reduce", "finalize", "update", "interpolate"):
            return method

        @functools.wraps(method)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.passes.append(name)
            return method(*args, **kwargs)

        return noted


@pytest.mark.parametrize("name", ALL)
def test_default_is_one_pass(name: str) -> None:
    """And the closure forms move to y before it, and back only where there is no gradient."""
    for skip_nonfinite in (False, True):
        optimizer, params = make(name, skip_nonfinite=skip_nonfinite)
        drive(optimizer, params, 2)
        engine = optimizer._get_runtime().engine
        recorder = engine._backend = Recorder(engine._backend)
        set_gradients(params, [torch.ones(p.shape) for p in params])
        step_with(optimizer, lambda: None)
        closure = name not in OPEN
        before = ["interpolate"] if closure else []
        look, after = (["reduce"], before) if skip_nonfinite else ([], [])
        assert recorder.passes == [*before, *look, "finalize", "update", *after]


@pytest.mark.parametrize("name", ALL)
def test_switched_off_and_on_during_training(name: str) -> None:
    """The host then knows how many steps were taken, skipped ones apart."""
    optimizer, params = make(name)
    twin, twins = make(name, skip_nonfinite=False)
    for k, (_, gradients) in enumerate(stream(SHAPES, 12)):
        for group in optimizer.param_groups:
            group["skip_nonfinite"] = k % 6 < 3
        if k in (1, 7):
            bad = functools.partial(set_gradients, params, spoiled(gradients, 2, float("nan")))
            optimizer.train()
            step_with(optimizer, bad)
        for o, its in ((optimizer, params), (twin, twins)):
            o.train()
            step_with(o, functools.partial(set_gradients, its, gradients))
        shown = [float(group["scheduled_lr"]) for group in optimizer.param_groups]
        assert shown == pytest.approx([g["scheduled_lr"] for g in twin.param_groups], rel=1e-14)
    assert optimizer.metrics()["skipped_steps"] == 2
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-13, atol=1e-13)


def test_one_for_all_groups() -> None:
    params = make_params([(3,), (4,)])
    groups = [{"params": params[:1]}, {"params": params[1:], "skip_nonfinite": True}]
    with pytest.raises(ValueError, match="skip_nonfinite"):
        FAMILY["sgd"].ours(groups)


def test_without_it_a_nan_spreads(backend: str) -> None:
    """The contrast: what the option is for, and what upstream does."""
    for make_optimizer, device, more in (
        (FAMILY["adamw"].ours, device_of(backend), {"backend": backend}),
        (FAMILY["adamw"].upstream, "cpu", {}),
    ):
        params = make_params([(5,)], device=device)
        optimizer = make_optimizer(params, **more)
        drive(optimizer, params, 2)
        set_gradients(params, [torch.tensor([0, 0, float("nan"), 0, 0])])
        optimizer.step()
        drive(optimizer, params, 4, skip=2)
        assert params[0].isnan().tolist() == [False, False, True, False, False]


def test_modes_after_a_skipped_first_step(backend: str) -> None:
    optimizer, params = make("adamw", backend, torch.float32)
    start = [p.detach().clone() for p in params]
    optimizer.train()
    set_gradients(params, [torch.full(p.shape, float("nan")) for p in params])
    optimizer.step()
    optimizer.eval()
    assert_same_bits([p.detach() for p in params], start)
    engine = optimizer._get_runtime().engine
    plan = optimizer._get_runtime().move_plan(optimizer._containers(), params, "modes")
    engine.interpolate(plan, Move.TO_Y)
    assert_same_bits([p.detach() for p in params], start)
