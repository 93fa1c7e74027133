"""State, checkpoints, first gradients, closures and bad input of AdamWScheduleFree and SGDScheduleFree."""

import copy
import inspect
import io
from typing import Any

import pytest
import schedulefree
import torch
from support import assert_same_bits, device_of, make_params, set_gradients, steps_for
from test_family import FAMILY, drive, groups_of, iterates_of
from torch import Tensor, nn

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree

BUFFERS = {
    "adamw": {"exp_avg_sq", "displacement"},
    "adamw, inner momentum": {"exp_avg", "exp_avg_sq", "displacement"},
    "sgd": {"displacement"},
}
KINDS = list(BUFFERS)


def make(kind: str, backend: str, dtype: torch.dtype) -> tuple[Any, list[nn.Parameter]]:
    name, _, inner = kind.partition(", ")
    params = make_params(dtype=dtype, device=device_of(backend))
    arguments = {**FAMILY[name].everything, **({"inner_momentum": 0.9} if inner else {})}
    return FAMILY[name].ours(groups_of(params, name), backend=backend, **arguments), params


def resume(kind: str, backend: str, dtype: torch.dtype, saved: Any) -> tuple[Any, list]:
    optimizer, params = make(kind, backend, dtype)
    with torch.no_grad():
        for p, value in zip(params, saved[1], strict=True):
            p.copy_(value)
    optimizer.load_state_dict(saved[0])
    return optimizer, params


def everything_of(optimizer: Any, params: list) -> Any:
    return copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params]))


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", FAMILY)
def test_arguments_are_upstreams_and_then_by_keyword(name: str) -> None:
    ours = inspect.signature(FAMILY[name].ours).parameters
    upstream = inspect.signature(FAMILY[name].upstream).parameters
    assert list(ours)[: len(upstream)] == list(upstream)
    for key, parameter in list(upstream.items())[:-1]:
        assert ours[key].default == parameter.default
    assert list(upstream)[-1] == "foreach"
    assert ours["foreach"].default is None
    added = list(ours.values())[len(upstream) :]
    assert {parameter.kind for parameter in added} == {inspect.Parameter.KEYWORD_ONLY}
    results = []
    for foreach in (None, False, True):
        params = make_params([(5, 3)])
        optimizer = FAMILY[name].ours(params, foreach=foreach, backend="eager")
        drive(optimizer, params, 3)
        results.append(params[0].detach())
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize(
    ("kind", "nbytes"), [("adamw", 8), ("adamw, inner momentum", 12), ("sgd", 4)]
)
def test_state_is_what_the_rule_needs(backend: str, kind: str, nbytes: int) -> None:
    buffers = BUFFERS[kind]
    for dtype, more in ((torch.float32, 0), (torch.bfloat16, 4)):
        optimizer, params = make(kind, backend, dtype)
        drive(optimizer, params, 2)
        masters = {"master_param"} if more else set()
        for p in params:
            state = optimizer.state[p]
            assert set(state) == buffers | masters | {"step", "y_beta"}
            held = sum(state[key].nbytes for key in set(state) - {"step", "y_beta"})
            assert held == (nbytes + more) * p.numel()
            assert {state[key].dtype for key in buffers | masters} == {torch.float32}


def test_late_first_gradient_takes_an_ordinary_step(backend: str) -> None:
    """Upstream corrects the bias with the group's count of steps: far too little for a new tensor."""

    def size_of_first_step(make: Any, steps: int, device: Any, **more: Any) -> float:
        early, late = make_params([(3,), (4,)], device=device)
        optimizer = make([early, late], lr=0.01, **more)
        before = late.detach().cpu().clone()
        optimizer.train()
        for k in range(steps):
            early.grad = torch.ones_like(early)
            late.grad = torch.ones_like(late) if k == steps - 1 else None
            optimizer.step()
        z = iterates_of(optimizer, [early, late])[1][2]
        return float((z - before).abs().max()) / 0.01

    assert 25 < size_of_first_step(schedulefree.AdamWScheduleFree, 3000, "cpu", foreach=False) < 32
    steps, device = steps_for(backend, 300), device_of(backend)
    assert size_of_first_step(AdamWScheduleFree, steps, device, backend=backend) == pytest.approx(1)


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_are_left_alone(backend: str, name: str) -> None:
    member = FAMILY[name]

    def is_kept(make: Any, device: Any, **more: Any) -> list[bool]:
        params = make_params([(7,), (5, 3)], device=device)
        optimizer = make(params, **member.everything, **more)
        gradients = [torch.full_like(p, 0.5) for p in params]
        before = [g.clone() for g in gradients]
        optimizer.train()
        for _ in range(3):
            for p, g in zip(params, gradients, strict=True):
                p.grad = g
            optimizer.step()
        return [torch.equal(g, old) for g, old in zip(gradients, before, strict=True)]

    assert not any(is_kept(member.upstream, "cpu", foreach=False))  # it normalises in place
    assert all(is_kept(member.ours, device_of(backend), backend=backend))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_the_same_bits(backend: str, kind: str, dtype: torch.dtype) -> None:
    runs = [make(kind, backend, dtype) for _ in range(2)]
    for optimizer, params in runs:
        drive(optimizer, params, 12, missing=0.3)
    assert_same_bits(*(everything_of(*run) for run in runs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_resumed_run_is_the_uninterrupted_one(
    backend: str, kind: str, dtype: torch.dtype, mode: str
) -> None:
    optimizer, params = make(kind, backend, dtype)
    drive(optimizer, params, 7, missing=0.3)
    getattr(optimizer, mode)()
    saved = through_a_file(everything_of(optimizer, params))
    drive(optimizer, params, 14, missing=0.3, skip=7)

    other, others = resume(kind, backend, dtype, saved)
    assert other.param_groups[0]["train_mode"] == (mode == "train")
    drive(other, others, 14, missing=0.3, skip=7)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))
    assert other.state_dict()["param_groups"][0]["k"] == 14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["eager", "cpu", "triton"])
def test_checkpoints_move_between_backends(backend: str, target: str, kind: str) -> None:
    if device_of(backend) != device_of(target):
        pytest.skip("the two backends work on different devices here")
    optimizer, params = make(kind, backend, torch.float64)
    drive(optimizer, params, 5, missing=0.3)
    saved = through_a_file(everything_of(optimizer, params))
    other, others = resume(kind, target, torch.float64, saved)
    drive(optimizer, params, 10, missing=0.3, skip=5)
    drive(other, others, 10, missing=0.3, skip=5)
    for p, q, old in zip(params, others, saved[1], strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-11, atol=1e-13)
        assert p.numel() == 0 or not torch.equal(p.detach(), old)


@pytest.mark.parametrize("name", FAMILY)
def test_step_without_any_gradient_counts_as_upstream(backend: str, name: str) -> None:
    member = FAMILY[name]
    params, others = make_params(device=device_of(backend)), make_params()
    mine = member.ours(groups_of(params, name), backend=backend, **member.everything)
    theirs = member.upstream(groups_of(others, name), foreach=False, **member.everything)
    for optimizer, its in ((mine, params), (theirs, others)):
        optimizer.train()
        for k in range(12):
            if k in (3, 4, 9):
                drive(optimizer, its, k + 1, skip=k)
            else:
                optimizer.zero_grad()
                optimizer.step()
    assert mine.metrics()["k"] == 12
    for group, other in zip(mine.state_dict()["param_groups"], theirs.param_groups, strict=True):
        for key in ("k", "weight_sum", "lr_max", "scheduled_lr"):
            assert group[key] == pytest.approx(other[key], rel=1e-12), key
    if name == "sgd":  # whose steps do not depend on the count of the tensor's own
        for a, b in zip(iterates_of(mine, params), iterates_of(theirs, others), strict=True):
            for left, right in zip(a, b, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("power", [2.0, 0.0])
def test_learning_rate_zero_and_then_not(backend: str, name: str, power: float) -> None:
    """The weights are 0, and c is 0 for 0 / 0; with power 0 they are 1, since 0^0 is."""
    member, arguments = FAMILY[name], {"lr": 0.0, "weight_lr_power": power, "weight_decay": 0.1}
    params, others = make_params(device=device_of(backend)), make_params()
    before = [p.detach().clone() for p in params]
    mine = member.ours(params, backend=backend, **arguments)
    theirs = member.upstream(others, foreach=False, **arguments)
    drive(mine, params, 4)
    assert_same_bits([p.detach() for p in params], before)
    assert mine.metrics()["ckp1"] == [0.0 if power else pytest.approx(1 / 4)]
    assert mine.state_dict()["param_groups"][0]["weight_sum"] == (0.0 if power else 4.0)
    drive(theirs, others, 4)
    for optimizer, its in ((mine, params), (theirs, others)):
        optimizer.param_groups[0]["lr"] = 0.1
        drive(optimizer, its, 9, skip=4)
    for a, b in zip(iterates_of(mine, params), iterates_of(theirs, others), strict=True):
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True) if p.numel())


@pytest.mark.parametrize("name", FAMILY)
def test_modes_and_averaged(backend: str, name: str) -> None:
    params = make_params([(7,), (5, 3)], torch.float32, device_of(backend))
    optimizer = FAMILY[name].ours(params, backend=backend, **FAMILY[name].everything)
    with pytest.raises(RuntimeError, match="eval mode"):
        optimizer.step()
    drive(optimizer, params, 6)
    y = [p.detach().clone() for p in params]
    x = [optimizer.iterates(p).x for p in params]
    with optimizer.averaged():
        for p, average, old in zip(params, x, y, strict=True):
            torch.testing.assert_close(p.detach(), average, rtol=1e-6, atol=1e-6)
            assert not torch.equal(p.detach(), old)
    assert_same_bits([p.detach() for p in params], y)
    optimizer.eval()
    for p, average in zip(params, x, strict=True):
        torch.testing.assert_close(p.detach(), average, rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="eval mode"):
        optimizer.step()
    assert optimizer.metrics()["k"] == 6


@pytest.mark.parametrize("name", FAMILY)
def test_closure_runs_with_gradients_and_its_loss_comes_back(backend: str, name: str) -> None:
    results = []
    for with_closure in (True, False):
        (p,) = make_params([(6,)], device=device_of(backend))
        optimizer = FAMILY[name].ours([p], backend=backend, **FAMILY[name].everything)
        optimizer.train()
        losses: list[Tensor] = []

        def closure(p: Tensor = p, losses: list = losses, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            losses.append(p.square().sum())
            losses[-1].backward()
            return losses[-1]

        for _ in range(3):
            if with_closure:
                with torch.no_grad():
                    assert optimizer.step(closure) is losses[-1]
            else:
                closure()
                assert optimizer.step() is None
        assert len(losses) == 3
        assert losses[2] < losses[0]
        results.append(p.detach())
    assert_same_bits(*results)


BAD: list[tuple[str, dict[str, Any], str]] = [
    *(
        (name, arguments, message)
        for name in FAMILY
        for arguments, message in (
            ({"lr": -0.1}, "lr is -0.1"),
            ({"lr": float("nan")}, "lr is nan"),
            ({"weight_decay": -1.0}, "weight_decay is -1"),
            ({"warmup_steps": -1}, "warmup_steps is -1"),
            ({"r": float("nan")}, "r is nan"),
            ({"weight_lr_power": float("inf")}, "weight_lr_power is inf"),
            ({"backend": "gpu"}, "unknown backend 'gpu'"),
        )
    ),
    ("adamw", {"betas": (-0.1, 0.9)}, r"betas\[0\] is -0.1"),
    ("adamw", {"betas": (1.1, 0.9)}, r"betas\[0\] is 1.1"),
    ("adamw", {"betas": (0.9, -0.1)}, r"betas\[1\] is -0.1"),
    ("adamw", {"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0"),
    ("adamw", {"eps": 0.0}, "eps is 0.0"),
    ("adamw", {"inner_momentum": -0.1}, "inner_momentum is -0.1"),
    ("adamw", {"inner_momentum": 1.0}, "inner_momentum is 1.0"),
    ("sgd", {"momentum": -0.1}, "momentum is -0.1"),
    ("sgd", {"momentum": 1.1}, "momentum is 1.1"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD)
def test_bad_hyperparameters(name: str, arguments: dict[str, Any], message: str) -> None:
    params = make_params([(3,), (4,)])
    with pytest.raises(ValueError, match=message):
        FAMILY[name].ours(params, **arguments)
    if "backend" not in arguments:
        groups = [{"params": params[:1]}, {"params": params[1:], **arguments}]
        with pytest.raises(ValueError, match=message):
            FAMILY[name].ours(groups)


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (SGDScheduleFree, AdamWScheduleFree),
        (AdamWScheduleFree, SGDScheduleFree),
        (AdamCScheduleFreePlus, AdamWScheduleFree),
        (AdamWScheduleFree, AdamCScheduleFreePlus),
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
    set_gradients(others, [torch.ones(3)])
    optimizer.train()
    optimizer.step(**({"loss": 1.0} if reader is AdamCScheduleFreePlus else {}))
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
