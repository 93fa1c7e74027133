"""State of the family's classes: what it holds, saving and resuming bit for bit, across backends."""

import copy
from typing import Any

import pytest
import schedulefree
import torch
from support import (
    BACKENDS,
    assert_same_bits,
    device_of,
    everything_of,
    make_params,
    set_gradients,
    through_a_file,
)
from support.family import FAMILY, drive, groups_of
from torch import nn

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    AdamWScheduleFreePaper,
    RAdamScheduleFree,
    RAdamScheduleFreeClosure,
    SGDScheduleFree,
    SGDScheduleFreeClosure,
)

ADAM, SGD = {"exp_avg_sq", "displacement"}, {"displacement"}
BUFFERS = {
    "adamw": ADAM,
    "adamw, inner momentum": {"exp_avg", *ADAM},
    "sgd": SGD,
    "radam": ADAM,
    "paper": ADAM,
    "adamw closure, inner momentum": {"exp_avg", *ADAM},
    "sgd closure": SGD,
    "radam closure": ADAM,
}
KINDS = list(BUFFERS)
SHAPES = [(0,), (7,), (33, 5), (), (64, 3), (0,)]


def make(
    kind: str, backend: str, dtype: torch.dtype, **more: Any
) -> tuple[Any, list[nn.Parameter]]:
    name, _, inner = kind.partition(", ")
    params = make_params(SHAPES, dtype, device_of(backend))
    arguments = {**FAMILY[name].everything, **({"inner_momentum": 0.9} if inner else {}), **more}
    return FAMILY[name].ours(groups_of(params, name), backend=backend, **arguments), params


def resume(kind: str, backend: str, dtype: torch.dtype, saved: Any) -> tuple[Any, list]:
    optimizer, params = make(kind, backend, dtype)
    with torch.no_grad():
        for p, value in zip(params, saved[1], strict=True):
            p.copy_(value)
    optimizer.load_state_dict(saved[0])
    return optimizer, params


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_what_the_rule_needs(kind: str) -> None:
    buffers = BUFFERS[kind]
    for dtype, more in ((torch.float32, 0), (torch.bfloat16, 4)):
        optimizer, params = make(kind, "cpu", dtype)
        drive(optimizer, params, 2)
        masters = {"master_param"} if more else set()
        for p in params:
            state = optimizer.state[p]
            assert set(state) == buffers | masters | {"step"}
            held = sum(state[key].nbytes for key in set(state) - {"step"})
            assert held == (4 * len(buffers) + more) * p.numel()
            assert {state[key].dtype for key in buffers | masters} == {torch.float32}


# Triton's interpreter is slow: there only the case with everything in it
RESUMED = [
    (backend, kind, dtype, mode)
    for backend in BACKENDS
    for kind in KINDS
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for mode in ("train", "eval")
    if backend != "triton" or (dtype, mode) == (torch.bfloat16, "eval")
]


@pytest.mark.parametrize(("backend", "kind", "dtype", "mode"), RESUMED)
def test_resumed_run_is_the_uninterrupted_one(
    backend: str, kind: str, dtype: torch.dtype, mode: str
) -> None:
    """And two runs give the same bits."""
    runs = [make(kind, backend, dtype) for _ in range(2)]
    for optimizer, params in runs:
        drive(optimizer, params, 5, missing=0.3)
        getattr(optimizer, mode)()
    saved = [through_a_file(everything_of(*run)) for run in runs]
    assert_same_bits(*saved)
    optimizer, params = runs[0]
    drive(optimizer, params, 9, missing=0.3, skip=5)

    other, others = resume(kind, backend, dtype, saved[0])
    if "closure" not in kind:
        assert other.param_groups[0]["train_mode"] == (mode == "train")
    drive(other, others, 9, missing=0.3, skip=5)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))
    assert other.state_dict()["param_groups"][0]["k"] == 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("eager", "cpu"),
        *([("cuda", "triton"), ("triton", "cuda")] if torch.cuda.is_available() else []),
        *([("cpu", "triton"), ("triton", "eager")] if device_of("triton").type == "cpu" else []),
    ],
)
def test_checkpoints_move_between_backends(source: str, target: str, kind: str) -> None:
    optimizer, params = make(kind, source, torch.float64)
    drive(optimizer, params, 5, missing=0.3)
    saved = through_a_file(everything_of(optimizer, params))
    other, others = resume(kind, target, torch.float64, saved)
    drive(optimizer, params, 9, missing=0.3, skip=5)
    drive(other, others, 9, missing=0.3, skip=5)
    for p, q, old in zip(params, others, saved[1], strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-11, atol=1e-13)
        assert p.numel() == 0 or not torch.equal(p.detach(), old)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_between_steps_go_on_alike(kind: str) -> None:
    """A deep copy of model and optimizer together, made between steps, is a run of its own."""
    optimizer, params = make(kind, "cpu", torch.float32)
    drive(optimizer, params, 4, missing=0.3)
    before = everything_of(optimizer, params)
    other, others = copy.deepcopy((optimizer, params))
    drive(other, others, 8, missing=0.3, skip=4)
    assert_same_bits(everything_of(optimizer, params), before)
    drive(optimizer, params, 8, missing=0.3, skip=4)
    assert_same_bits(everything_of(optimizer, params), everything_of(other, others))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_looking_between_steps_changes_nothing(kind: str, skip_nonfinite: bool) -> None:
    model = nn.Module()
    runs = [make(kind, "cpu", torch.float32, skip_nonfinite=skip_nonfinite) for _ in range(2)]
    params = runs[1][1]
    for number, p in enumerate(params):
        model.register_parameter(f"p{number}", p)

    def look(k: int, optimizer: Any) -> None:
        optimizer.state_dict()
        optimizer.metrics()
        with optimizer.averaged():
            optimizer.averaged_state_dict(model)
        optimizer.averaged_state_dict(model)
        [optimizer.iterates(p) for p in params]
        repr(optimizer)

    drive(*runs[0], 6, missing=0.3)
    drive(*runs[1], 6, missing=0.3, each=look)
    assert_same_bits(everything_of(*runs[0]), everything_of(*runs[1]))


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (SGDScheduleFree, AdamWScheduleFree),
        (AdamWScheduleFree, SGDScheduleFree),
        (AdamCScheduleFreePlus, AdamWScheduleFree),
        (AdamWScheduleFree, AdamCScheduleFreePlus),
        (AdamWScheduleFree, AdamWScheduleFreePaper),
        (AdamWScheduleFreePaper, RAdamScheduleFree),
        (RAdamScheduleFree, RAdamScheduleFreeClosure),
        (SGDScheduleFreeClosure, SGDScheduleFree),
        (schedulefree.SGDScheduleFree, AdamWScheduleFree),
    ],
)
def test_state_of_another_class_is_refused(writer: Any, reader: Any) -> None:
    params, others = make_params([(3,)]), make_params([(3,)])
    saved = writer(params).state_dict()
    optimizer = reader(others)
    before = everything_of(optimizer, others)
    with pytest.raises(ValueError, match=f"expected one of {reader.__name__}"):
        optimizer.load_state_dict(saved)
    assert_same_bits(everything_of(optimizer, others), before)
    if reader is AdamCScheduleFreePlus:
        set_gradients(others, [torch.ones(3)])
        optimizer.train()
        optimizer.step(loss=1.0)
    else:
        drive(optimizer, others, 1)
    assert optimizer.metrics()["k"] == 1


def test_inner_momentum_cannot_come_later() -> None:
    params = make_params([(5,), (3,)])
    optimizer = AdamWScheduleFree(params, backend="cpu")
    drive(optimizer, params, 3)
    before = everything_of(optimizer, params)
    optimizer.param_groups[0]["inner_momentum"] = 0.9
    with pytest.raises(RuntimeError, match="exp_avg.*put the settings back"):
        optimizer.step()
    optimizer.param_groups[0]["inner_momentum"] = 0.0
    assert_same_bits(everything_of(optimizer, params), before)
    drive(optimizer, params, 5, skip=3)
    assert optimizer.metrics()["k"] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_step_in_eval_mode_while_every_lr_is_zero_makes_state_only(kind: str) -> None:
    """Loaders of checkpoints do that; with another lr it stays an error."""
    optimizer, params = make(kind, "cpu", torch.float32)
    before = [p.detach().clone() for p in params]
    set_gradients(params, [torch.zeros(p.shape) for p in params])
    with pytest.raises((RuntimeError, ValueError), match="in eval mode|got no closure"):
        optimizer.step()
    assert not optimizer.state
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(closure=None)
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    assert optimizer.metrics()["k"] == 0
    assert all({"step", *BUFFERS[kind]} == set(optimizer.state[p]) for p in params)
    assert_same_bits([p.detach() for p in params], before)
