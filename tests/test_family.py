"""AdamWScheduleFree and SGDScheduleFree beside upstream's classes of these names, and the references."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import schedulefree
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
from torch import Tensor

from sfplus_kernels import AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.reference import AdamWScheduleFreeReference, SGDScheduleFreeReference


class Member(NamedTuple):
    ours: Any
    upstream: Any
    reference: Any
    everything: dict[str, Any]
    second_group: dict[str, Any]


SHARED = {"lr": 0.02, "weight_decay": 0.1, "warmup_steps": 10, "r": 1.0, "weight_lr_power": 1.0}
SECOND = {"lr": 0.05, "weight_decay": 0.02, "warmup_steps": 4, "r": 2.0, "weight_lr_power": 2.0}
FAMILY = {
    "adamw": Member(
        AdamWScheduleFree,
        schedulefree.AdamWScheduleFree,
        AdamWScheduleFreeReference,
        {**SHARED, "betas": (0.8, 0.97)},
        {**SECOND, "betas": (0.6, 0.9), "eps": 1e-3},
    ),
    "sgd": Member(
        SGDScheduleFree,
        schedulefree.SGDScheduleFree,
        SGDScheduleFreeReference,
        {**SHARED, "momentum": 0.8},
        {**SECOND, "momentum": 0.6},
    ),
}

ALONE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "weight decay": {"weight_decay": 0.1, "lr": 0.02},
    "warmup": {"warmup_steps": 20},
    "r": {"r": 2.0},
    "power 0 under warmup": {"weight_lr_power": 0.0, "warmup_steps": 15},
    "power 1 under warmup": {"weight_lr_power": 1.0, "warmup_steps": 15},
}
GROUPS = ["groups", "lr schedule", "modes", "stretches"]  # two groups, and everything at once
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((name, case, ALONE[case]) for name in FAMILY for case in ALONE),
    ("adamw", "betas", {"betas": (0.6, 0.95)}),
    ("adamw", "eps", {"eps": 0.01, "lr": 0.1}),
    ("sgd", "momentum", {"momentum": 0.6}),
    *((name, case, FAMILY[name].everything) for name in FAMILY for case in GROUPS[:3]),
    ("sgd", "stretches", FAMILY["sgd"].everything),  # AdamW counts steps otherwise than upstream
]

# Triton's interpreter is slow: there only the cases that have everything at once
BACKEND_CASES = [
    (backend, *case)
    for backend in BACKENDS
    for case in CASES
    if backend != "triton" or case[1] in GROUPS
]


def groups_of(params: Sequence[Tensor], name: str) -> list[dict[str, Any]]:
    """The parameters in two groups that differ in every hyperparameter."""
    middle = len(params) // 2
    return [
        {"params": list(params[:middle])},
        {"params": list(params[middle:]), **FAMILY[name].second_group},
    ]


def drive(
    optimizer: Any,
    params: Sequence[Tensor],
    steps: int,
    *,
    skip: int = 0,
    missing: float = 0.0,
    stretches: bool = False,
    grad_dtype: torch.dtype | None = None,
    each: Callable[[int, Any], None] | None = None,
) -> None:
    """Steps ``skip`` to ``steps`` of one stream; ``each`` is called after every step."""
    optimizer.train()
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps, missing=missing)):
        if k < skip:
            continue
        present = [
            None if stretches and (k // 8 + i) % 3 == 0 else g for i, g in enumerate(gradients)
        ]
        set_gradients(params, present, grad_dtype)
        optimizer.step()
        if each is not None:
            each(k, optimizer)


def follow_schedule(k: int, optimizer: Any) -> None:
    if k % 4 == 0:
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = 0.03 * (1 + number) * (1 + math.cos(k / 15))


def change_modes(k: int, optimizer: Any) -> None:
    if k % 3 == 2:
        optimizer.eval()
        optimizer.train()


HOOKS = {"lr schedule": follow_schedule, "modes": change_modes}


def iterates_of(optimizer: Any, params: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """(x, y, z) of each parameter; of an optimizer without ``iterates``, by way of its modes."""
    if hasattr(optimizer, "iterates"):
        return [tuple(value.cpu() for value in optimizer.iterates(p)) for p in params]
    y = [p.detach().clone() for p in params]
    z = [optimizer.state.get(p, {}).get("z", p.detach()).clone() for p in params]
    optimizer.eval()
    x = [p.detach().clone() for p in params]
    optimizer.train()
    return list(zip(x, y, z, strict=True))


def difference(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> float:
    """The largest over all iterates, relative to the parameter's size."""
    largest = 0.0
    for left, right in zip(a, b, strict=True):
        for mine, theirs in zip(left, right, strict=True):
            if mine.numel():
                error = (mine - theirs).abs().max() / theirs.abs().max().clamp(min=1)
                largest = max(largest, float(error))
    return largest


def check_run(
    mine: Any, params: list, theirs: Any, others: list, steps: int, case: str, **how: Any
) -> None:
    """The same run with both: iterates, step sizes of every step, and run state agree."""
    lr: list[list[float]] = [[], []]
    for optimizer, its, seen in ((mine, params, lr[0]), (theirs, others, lr[1])):

        def each(k: int, optimizer: Any, seen: list[float] = seen) -> None:
            seen.extend(group["scheduled_lr"] for group in optimizer.param_groups)
            if case in HOOKS:
                HOOKS[case](k, optimizer)

        drive(optimizer, its, steps, each=each, **how)
    start = [(p.detach(),) * 3 for p in make_params()]
    found, expected = iterates_of(mine, params), iterates_of(theirs, others)
    assert difference(expected, start) > 1e-3  # both stood still is not agreement
    assert difference(found, expected) < 1e-10
    assert all(type(value) is float for value in lr[0])
    assert lr[0] == pytest.approx(lr[1], rel=1e-12)
    groups = mine.state_dict()["param_groups"]
    for group, other in zip(groups, theirs.param_groups, strict=True):
        assert group["k"] == steps
        for key in ("k", "lr_max", "weight_sum", "scheduled_lr"):
            assert group[key] == pytest.approx(other[key], rel=1e-10), key


def check_against_upstream(
    make: Callable[[Any], Any], name: str, case: str, arguments: dict, steps: int, device: Any
) -> None:
    params, others = make_params(device=device), make_params()
    grouped = case in GROUPS
    mine = make(groups_of(params, name) if grouped else params)
    theirs = FAMILY[name].upstream(
        groups_of(others, name) if grouped else others, foreach=False, **arguments
    )
    check_run(mine, params, theirs, others, steps, case, stretches=case == "stretches")


@pytest.mark.parametrize(("backend", "name", "case", "arguments"), BACKEND_CASES)
def test_float64_agrees_with_upstream(
    backend: str, name: str, case: str, arguments: dict[str, Any]
) -> None:
    def make(params: Any) -> Any:
        return FAMILY[name].ours(params, backend=backend, **arguments)

    steps = steps_for(backend, 300)
    check_against_upstream(make, name, case, arguments, steps, device_of(backend))


@pytest.mark.parametrize(("name", "case", "arguments"), CASES)
def test_references_agree_with_upstream(name: str, case: str, arguments: dict[str, Any]) -> None:
    def make(params: Any) -> Any:
        return FAMILY[name].reference(params, **arguments)

    check_against_upstream(make, name, case, arguments, 300, "cpu")


BEYOND: list[tuple[str, dict[str, Any]]] = [  # what upstream lacks or cannot do
    ("adamw", {}),
    ("adamw", {"inner_momentum": 0.9}),
    ("adamw", {"inner_momentum": 0.5, "maximize": True}),
    ("adamw", {"betas": (0.0, 0.99)}),
    ("adamw", {"betas": (1.0, 0.99), "inner_momentum": 0.7}),
    ("adamw", {"betas": (0.9, 0.0)}),
    ("adamw", {"maximize": True}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"momentum": 1.0}),
    ("sgd", {"maximize": True}),
]


@pytest.mark.parametrize(("name", "arguments"), BEYOND)
@pytest.mark.parametrize("grouped", [False, True])
def test_float64_agrees_with_the_reference(
    backend: str, name: str, arguments: dict[str, Any], grouped: bool
) -> None:
    """Gradients are missing at random, so that each tensor has its own count of steps."""
    member = FAMILY[name]
    arguments = {**member.everything, **arguments}
    params, truth = make_params(device=device_of(backend)), make_params()
    make = (lambda its: groups_of(its, name)) if grouped else list
    mine = member.ours(make(params), backend=backend, **arguments)
    reference = member.reference(make(truth), **arguments)
    check_run(mine, params, reference, truth, steps_for(backend, 150), "", missing=0.4)
    counts = set()
    for p, q in zip(params, truth, strict=True):
        if q in reference.state and q.numel():
            assert float(mine.state[p]["step"]) == reference.state[q]["step"]
            counts.add(reference.state[q]["step"])
    assert len(counts) > 1


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("grouped", [False, True])
def test_float32_is_as_good_as_upstream(backend: str, name: str, grouped: bool) -> None:
    """Errors against float64, beside those of upstream in float32, from the same start values."""
    member, shapes = FAMILY[name], [*SHAPES, (401, 13)]
    arguments = member.everything if grouped else {}

    def run(make: Any, dtype: torch.dtype, device: Any = "cpu", **more: Any) -> list:
        coarse = make_params(shapes, torch.float32)
        params = [torch.nn.Parameter(p.detach().to(device, dtype)) for p in coarse]
        optimizer = make(groups_of(params, name) if grouped else params, **arguments, **more)
        optimizer.train()
        for _, gradients in stream(shapes, steps_for(backend, 200)):
            set_gradients(params, [None if g is None else g.float().double() for g in gradients])
            optimizer.step()
        return iterates_of(optimizer, params)

    ours = run(member.ours, torch.float32, device_of(backend), backend=backend)
    peer = run(member.upstream, torch.float32, foreach=False)
    truth = run(member.upstream, torch.float64, foreach=False)
    for column, iterate in enumerate("xyz"):
        mine, theirs = (
            torch.cat(
                [
                    (a[column].double() - b[column]).abs().flatten()
                    for a, b in zip(its, truth, strict=True)
                ]
            )
            for its in (ours, peer)
        )
        assert ours[0][column].dtype == torch.float32
        assert mine.mean() <= 1.2 * theirs.mean(), iterate
        assert mine.max() <= 2 * theirs.max(), iterate


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("low_gradients", [False, True])
def test_low_precision_parameters_follow_a_float32_twin(
    backend: str, name: str, dtype: torch.dtype, low_gradients: bool
) -> None:
    member, device = FAMILY[name], device_of(backend)
    params = make_params(dtype=dtype, device=device)
    twins = [torch.nn.Parameter(p.detach().float()) for p in params]
    start = [p.detach().clone() for p in params]
    low = member.ours(groups_of(params, name), backend=backend, **member.everything)
    full = member.ours(groups_of(twins, name), backend=backend, **member.everything)
    low.train()
    full.train()
    for _, gradients in stream(SHAPES, 8, missing=0.2):
        grad_dtype = dtype if low_gradients else torch.float32
        rounded = [None if g is None else g.to(grad_dtype) for g in gradients]
        set_gradients(params, rounded, grad_dtype)
        set_gradients(twins, rounded)
        low.step()
        full.step()
    for p, twin, old in zip(params, twins, start, strict=True):
        assert_same_bits(low.state[p]["master_param"], twin.detach())
        assert_same_bits(p.detach(), twin.detach().to(dtype))
        assert "master_param" not in full.state[twin]
        assert p.numel() == 0 or not torch.equal(p.detach(), old)
    low.eval()
    for p, twin in zip(params, twins, strict=True):
        assert_same_bits(p.detach(), full.iterates(twin).x.to(dtype))


@pytest.mark.parametrize("name", FAMILY)
def test_different_settings_give_different_results(backend: str, name: str) -> None:
    """Each hyperparameter matters: otherwise the agreement above would prove little."""
    member, results = FAMILY[name], []
    more = {"inner_momentum": 0.5} if name == "adamw" else {}
    for key, value in [("lr", member.everything["lr"]), *{**member.second_group, **more}.items()]:
        params = make_params([(5, 3)], device=device_of(backend))
        optimizer = member.ours(params, backend=backend, **{**member.everything, key: value})
        drive(optimizer, params, 12)
        results.append(params[0].detach().cpu())
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert not torch.equal(first, second)
