"""Arguments, first gradients, learning rates of 0, modes, closures and bad input of the family."""

import inspect
from typing import Any

import pytest
import schedulefree
import torch
from support import BACKENDS, assert_same_bits, device_of, make_params, steps_for
from support.family import (
    FAMILY,
    NAMESAKES,
    PLAIN,
    drive,
    groups_of,
    iterates_of,
    set_train_mode,
    step_with,
)
from torch import Tensor

from sfplus_kernels import AdamWScheduleFree, RAdamScheduleFree

SHAPES = [(0,), (7,), (33, 5), (), (0, 3)]
# Triton's interpreter is slow: there one class with modes, and one without
BACKEND_NAMES = [
    (backend, name)
    for backend in BACKENDS
    for name in FAMILY
    if backend != "triton" or name in ("adamw", "sgd closure")
]


@pytest.mark.parametrize("name", NAMESAKES)
def test_arguments_are_upstreams_and_then_by_keyword(name: str) -> None:
    ours = inspect.signature(FAMILY[name].ours).parameters
    upstream = inspect.signature(FAMILY[name].upstream).parameters
    assert list(ours)[: len(upstream)] == list(upstream)
    for key, parameter in upstream.items():
        assert ours[key].default == (None if key == "foreach" else parameter.default)
    assert "foreach" in upstream
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


@pytest.mark.parametrize("make", [AdamWScheduleFree, RAdamScheduleFree])
def test_late_first_gradient_takes_an_ordinary_step(backend: str, make: Any) -> None:
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

    upstream = getattr(schedulefree, make.__name__)
    assert 20 < size_of_first_step(upstream, 2000, "cpu", foreach=False) < 32
    steps, device = steps_for(backend, 300), device_of(backend)
    assert 0.01 < size_of_first_step(make, steps, device, backend=backend) < 1 + 1e-7


@pytest.mark.parametrize(("backend", "name"), BACKEND_NAMES)
def test_gradients_are_left_alone(backend: str, name: str) -> None:
    member = FAMILY[name]

    def is_kept(make: Any, device: Any, **more: Any) -> list[bool]:
        params = make_params([(7,), (5, 3)], device=device)
        optimizer = make(params, **member.everything, **more)
        gradients = [torch.full_like(p, 0.5) for p in params]
        before = [g.clone() for g in gradients]
        set_train_mode(optimizer)

        def give() -> None:
            for p, g in zip(params, gradients, strict=True):
                p.grad = g

        for _ in range(3):
            step_with(optimizer, give)
        return [torch.equal(g, old) for g, old in zip(gradients, before, strict=True)]

    if name in NAMESAKES:  # upstream normalises in place
        assert not any(is_kept(member.upstream, "cpu", foreach=False))
    assert all(is_kept(member.ours, device_of(backend), backend=backend))


@pytest.mark.parametrize(("backend", "name"), BACKEND_NAMES)
def test_step_without_any_gradient_counts_as_the_oracle(backend: str, name: str) -> None:
    member = FAMILY[name]
    params, others = make_params(SHAPES, device=device_of(backend)), make_params(SHAPES)
    mine = member.ours(groups_of(params, name), backend=backend, **member.everything)
    theirs = member.oracle(groups_of(others, name), **member.everything)
    for optimizer, its in ((mine, params), (theirs, others)):
        set_train_mode(optimizer)
        for k in range(12):
            if k in (3, 4, 9):
                drive(optimizer, its, k + 1, skip=k)
            else:
                step_with(optimizer, optimizer.zero_grad)
    assert mine.metrics()["k"] == 12
    for group, other in zip(mine.state_dict()["param_groups"], theirs.param_groups, strict=True):
        for key in ("k", "weight_sum", "lr_max", "scheduled_lr"):
            assert group[key] == pytest.approx(other[key], rel=1e-12), key
    if name in ("sgd", "paper"):  # whose steps do not depend on the count of the tensor's own
        for a, b in zip(iterates_of(mine, params), iterates_of(theirs, others), strict=True):
            for left, right in zip(a, b, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("backend", "name"), BACKEND_NAMES)
@pytest.mark.parametrize("power", [2.0, 0.0])
def test_learning_rate_zero_and_then_not(backend: str, name: str, power: float) -> None:
    """The weights are 0, and c is 0 for 0 / 0; with power 0 they are 1, since 0^0 is."""
    member, arguments = FAMILY[name], {"lr": 0.0, "weight_lr_power": power, "weight_decay": 0.1}
    params, others = make_params(SHAPES, device=device_of(backend)), make_params(SHAPES)
    before = [p.detach().clone() for p in params]
    mine = member.ours(params, backend=backend, **arguments)
    theirs = member.oracle(others, **arguments)
    drive(mine, params, 4)
    assert_same_bits([p.detach() for p in params], before)
    assert mine.metrics()["ckp1"] == [0.0 if power else pytest.approx(1 / 4)]
    assert mine.state_dict()["param_groups"][0]["weight_sum"] == (0.0 if power else 4.0)
    drive(theirs, others, 4)
    for optimizer, its in ((mine, params), (theirs, others)):
        optimizer.param_groups[0]["lr"] = 0.1
        drive(optimizer, its, 11, skip=4)
    for a, b in zip(iterates_of(mine, params), iterates_of(theirs, others), strict=True):
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True) if p.numel())


@pytest.mark.parametrize("name", PLAIN)
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


@pytest.mark.parametrize("name", PLAIN)
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
            ({"r": float("nan")}, "r is nan"),
            ({"weight_lr_power": float("inf")}, "weight_lr_power is inf"),
            ({"backend": "gpu"}, "unknown backend 'gpu'"),
        )
    ),
    *((name, {"warmup_steps": -1}, "warmup_steps is -1") for name in FAMILY if "radam" not in name),
    ("adamw", {"betas": (-0.1, 0.9)}, r"betas\[0\] is -0.1"),
    ("adamw", {"betas": (1.1, 0.9)}, r"betas\[0\] is 1.1"),
    ("adamw", {"betas": (0.9, -0.1)}, r"betas\[1\] is -0.1"),
    ("adamw", {"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0"),
    ("adamw", {"eps": 0.0}, "eps is 0.0"),
    ("radam", {"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0"),
    ("radam closure", {"betas": (1.1, 0.9)}, r"betas\[0\] is 1.1"),
    ("paper", {"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0"),
    ("paper", {"eps": 0.0}, "eps is 0.0"),
    ("adamw", {"inner_momentum": -0.1}, "inner_momentum is -0.1"),
    ("adamw", {"inner_momentum": 1.0}, "inner_momentum is 1.0"),
    ("adamw", {"decoupling_c": 0}, "decoupling_c is 0; expected .*None"),
    ("adamw closure", {"decoupling_c": -3.0}, "decoupling_c is -3.0"),
    ("adamw", {"decoupling_c": 20, "betas": (1.0, 0.9)}, "decoupling_c is 20 and beta is 1"),
    ("sgd", {"momentum": -0.1}, "momentum is -0.1"),
    ("sgd", {"momentum": 1.1}, "momentum is 1.1"),
    ("sgd closure", {"momentum": 1.1}, "momentum is 1.1"),
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


def layouts(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Parameters, each with memory of its own, beside tensors with the strides of their gradients."""

    def fresh(*shape: int) -> Tensor:
        return torch.empty(shape, device=device)

    def image() -> Tensor:
        return fresh(2, 9, 4, 3)

    return [
        (image().to(memory_format=torch.channels_last), image()),
        (image(), image().to(memory_format=torch.channels_last)),
        (image()[..., ::2], fresh(2, 9, 4, 2)),
        (fresh(7, 5).t(), fresh(5, 7)),
        (fresh(5, 7), fresh(7, 5).t()),
        (fresh(36)[1:], fresh(1).expand(35)),  # misaligned; stride 0
    ]


@pytest.mark.parametrize(("backend", "name"), BACKEND_NAMES)
@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_layouts_in_memory(backend: str, name: str, skip_nonfinite: bool) -> None:
    """Gradients of other strides than their parameters, with the reduction pass and without it."""
    generator = torch.Generator().manual_seed(0)
    awkward = layouts(device_of(backend))
    start = [torch.randn(p.shape, generator=generator) for p, _ in awkward]
    runs: list[tuple[Any, list]] = []
    for dense in (False, True):
        params = [
            torch.nn.Parameter((torch.empty_like(p).contiguous() if dense else p).copy_(value))
            for (p, _), value in zip(awkward, start, strict=True)
        ]
        arguments = {**FAMILY[name].everything, "skip_nonfinite": skip_nonfinite}
        runs.append((FAMILY[name].ours(params, backend=backend, **arguments), params))
    for _ in range(3):
        values = [torch.randn(p.shape, generator=generator).to(p.device) for p in runs[0][1]]
        values[-1] = values[-1][:1].expand(35)
        for number, (optimizer, params) in enumerate(runs):

            def give(params: list = params, values: list = values, number: int = number) -> None:
                for p, value, (_, like) in zip(params, values, awkward, strict=True):
                    grad = value.contiguous()
                    if number == 0:
                        grad = value if 0 in like.stride() else torch.empty_like(like).copy_(value)
                        assert grad.stride() == like.stride()
                    p.grad = grad

            set_train_mode(optimizer)
            step_with(optimizer, give)
    for mine, dense, old in zip(runs[0][1], runs[1][1], start, strict=True):
        assert_same_bits(mine.detach(), dense.detach())
        assert name == "radam" or not torch.equal(mine.detach().cpu(), old)
    assert [p.stride() for p in runs[0][1]] == [p.stride() for p, _ in awkward]
