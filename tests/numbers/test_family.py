"""Each class of the family beside upstream's class of its name, and beside the references."""

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support import (
    BACKENDS,
    assert_same_bits,
    device_of,
    make_params,
    set_gradients,
    stream,
)
from support.family import (
    CASES,
    FAMILY,
    NAMESAKES,
    PLAIN,
    assert_agree,
    case_of,
    drive,
    groups_of,
    iterates_of,
    oracle_outcome,
    outcome,
    step_with,
)
from torch import Tensor

# Triton's interpreter is slow: there one short run with everything at once
STEPS = {"eager": 120, "cpu": 120, "cuda": 120, "triton": 10}
BACKEND_CASES = [
    *((backend, *case) for backend in BACKENDS if backend != "triton" for case in CASES),
    *(("triton", name, "all at once") for name in FAMILY),
]


@pytest.mark.parametrize(("backend", "name", "case"), BACKEND_CASES)
def test_float64_agrees_with_the_oracle(backend: str, name: str, case: str) -> None:
    params, groups, arguments = case_of(name, case, device_of(backend))
    optimizer = FAMILY[name].ours(groups, backend=backend, **arguments)
    steps = STEPS[backend]
    found = outcome(optimizer, params, steps, case)
    assert_agree(found, oracle_outcome(name, case, steps), steps)


@pytest.mark.parametrize(
    ("name", "case"), [case for case in CASES if case[0] in {*PLAIN} & {*NAMESAKES}]
)
def test_references_agree_with_upstream(name: str, case: str) -> None:
    params, groups, arguments = case_of(name, case)
    steps = STEPS["eager"]
    found = outcome(FAMILY[name].reference(groups, **arguments), params, steps, case)
    assert_agree(found, oracle_outcome(name, case, steps), steps)


BEYOND: list[tuple[str, dict[str, Any]]] = [  # what upstream lacks or cannot do
    ("adamw", {}),
    ("adamw", {"inner_momentum": 0.9}),
    ("adamw", {"inner_momentum": 0.5, "maximize": True}),
    ("adamw", {"betas": (0.0, 0.99)}),
    ("adamw", {"betas": (1.0, 0.99), "inner_momentum": 0.7}),
    ("adamw", {"betas": (0.9, 0.0)}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"momentum": 1.0}),
    ("sgd", {"maximize": True}),
    ("radam", {}),
    ("radam", {"silent_sgd_phase": True, "betas": (0.0, 0.99)}),
    ("radam", {"maximize": True, "betas": (1.0, 0.8)}),
    ("radam", {"betas": (0.9, 0.0)}),  # never rectified
    ("paper", {}),
    ("paper", {"maximize": True, "betas": (1.0, 0.0)}),
    ("adamw closure", {}),
    ("adamw closure", {"maximize": True, "inner_momentum": 0.9, "betas": (0.0, 0.99)}),
    ("sgd closure", {}),
    ("sgd closure", {"momentum": 0.0, "maximize": True}),
    ("sgd closure", {"momentum": 1.0}),
    ("radam closure", {}),
    ("adamw", {"decoupling_c": 20.0}),
    ("adamw closure", {"decoupling_c": 0.5, "inner_momentum": 0.9}),
]
IN_THE_INTERPRETER = [BEYOND[i] for i in (2, 8, 12, 15, 17, 19, 22)]


@functools.cache
def reference_outcome(name: str, index: int, grouped: bool, steps: int) -> tuple:
    params = make_params()
    optimizer = FAMILY[name].reference(
        groups_of(params, name) if grouped else params,
        **{**FAMILY[name].everything, **BEYOND[index][1]},
    )
    found = outcome(optimizer, params, steps, missing=0.4)
    return found, [optimizer.state.get(p, {}).get("step", 0) for p in params]


BEYOND_CASES = [
    (backend, index, grouped)
    for backend in BACKENDS
    for index in range(len(BEYOND))
    for grouped in (False, True)
    if backend in ("cpu", "cuda")
    or (grouped and (backend == "eager" or BEYOND[index] in IN_THE_INTERPRETER))
]


@pytest.mark.parametrize(("backend", "index", "grouped"), BEYOND_CASES)
def test_float64_agrees_with_the_reference(backend: str, index: int, grouped: bool) -> None:
    """Gradients are missing at random, so that each tensor has its own count of steps."""
    name, arguments = BEYOND[index]
    steps = STEPS[backend]
    expected, counts = reference_outcome(name, index, grouped, steps)
    params = make_params(device=device_of(backend))
    mine = FAMILY[name].ours(
        groups_of(params, name) if grouped else params,
        backend=backend,
        **{**FAMILY[name].everything, **arguments},
    )
    assert_agree(outcome(mine, params, steps, missing=0.4), expected, steps)
    for p, count in zip(params, counts, strict=True):
        if p.numel() and count:
            assert float(mine.state[p]["step"]) == count
    assert len(set(counts)) > 2


FLOAT32_SHAPES = [(0,), (7,), (33, 5), (), (401, 13)]


def run_rounded(make: Any, name: str, dtype: torch.dtype, device: Any, steps: int) -> list:
    """A run whose start values and gradients are those of float32."""
    coarse = make_params(FLOAT32_SHAPES, torch.float32)
    params = [torch.nn.Parameter(p.detach().to(device, dtype)) for p in coarse]
    optimizer = make(groups_of(params, name), **FAMILY[name].everything)
    optimizer.train()
    for _, gradients in stream(FLOAT32_SHAPES, steps):
        set_gradients(params, [None if g is None else g.float().double() for g in gradients])
        optimizer.step()
    return iterates_of(optimizer, params)


@functools.cache
def oracle_rounded(name: str, dtype: torch.dtype, steps: int) -> list:
    make = functools.partial(FAMILY[name].oracle, foreach=True)
    return run_rounded(make, name, dtype, "cpu", steps)


@pytest.mark.parametrize("name", PLAIN)
def test_float32_is_as_good_as_the_oracle(backend: str, name: str) -> None:
    """Errors against float64, beside those of the oracle in float32, from the same start values."""
    steps = STEPS[backend]
    make = functools.partial(FAMILY[name].ours, backend=backend)
    mine = run_rounded(make, name, torch.float32, device_of(backend), steps)
    assert mine[0][0].dtype == torch.float32
    peer = oracle_rounded(name, torch.float32, steps)
    truth = oracle_rounded(name, torch.float64, steps)

    def errors(found: list, column: int) -> Tensor:
        pairs = zip(found, truth, strict=True)
        return torch.cat([(a[column].double() - b[column]).abs().flatten() for a, b in pairs])

    for column, iterate in enumerate("xyz"):
        assert errors(mine, column).mean() <= 1.2 * errors(peer, column).mean(), iterate
        assert errors(mine, column).max() <= 2 * errors(peer, column).max(), iterate


LOW_CASES = [
    (backend, name, dtype, low_gradients)
    for backend in BACKENDS
    for name in FAMILY
    for dtype in (torch.bfloat16, torch.float16)
    for low_gradients in (False, True)
    if backend != "triton" or (dtype == torch.bfloat16) == low_gradients == (name != "sgd closure")
]


@pytest.mark.parametrize(("backend", "name", "dtype", "low_gradients"), LOW_CASES)
def test_low_precision_parameters_follow_a_float32_twin(
    backend: str, name: str, dtype: torch.dtype, low_gradients: bool
) -> None:
    member, device = FAMILY[name], device_of(backend)
    shapes: Sequence[tuple[int, ...]] = [(0,), (7,), (33, 5), (), (257,)]
    params = make_params(shapes, dtype, device)
    twins = [torch.nn.Parameter(p.detach().float()) for p in params]
    start = [p.detach().clone() for p in params]
    low = member.ours(groups_of(params, name), backend=backend, **member.everything)
    full = member.ours(groups_of(twins, name), backend=backend, **member.everything)
    low.train()
    full.train()
    for _, gradients in stream(shapes, 6, missing=0.2):
        grad_dtype = dtype if low_gradients else torch.float32
        rounded = [None if g is None else g.to(grad_dtype) for g in gradients]
        step_with(low, functools.partial(set_gradients, params, rounded, grad_dtype))
        step_with(full, functools.partial(set_gradients, twins, rounded))
    moved = 0
    for p, twin, old in zip(params, twins, start, strict=True):
        assert_same_bits(low.state[p]["master_param"], twin.detach())
        assert_same_bits(p.detach(), twin.detach().to(dtype))
        assert "master_param" not in full.state[twin]
        moved += not torch.equal(p.detach(), old)
    assert moved >= 2  # RAdam begins slowly
    low.eval()
    for p, twin in zip(params, twins, strict=True):
        assert_same_bits(p.detach(), full.iterates(twin).x.to(dtype))


@pytest.mark.parametrize("name", FAMILY)
def test_different_settings_give_different_results(name: str) -> None:
    """Each hyperparameter matters: otherwise the agreement of the backends would prove little."""
    member, results = FAMILY[name], []
    more = {"inner_momentum": 0.5} if "adamw" in name else {}
    for key, value in [("lr", member.everything["lr"]), *{**member.second_group, **more}.items()]:
        params = make_params([(5, 3)])
        optimizer = member.ours(params, backend="cpu", **{**member.everything, key: value})
        drive(optimizer, params, 12)
        results.append(params[0].detach())
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert not torch.equal(first, second)


@pytest.mark.parametrize("name", FAMILY)
def test_host_and_device_form_the_same_step_size(backend: str, name: str) -> None:
    params = make_params([(3,), (4,)], device=device_of(backend))
    optimizer = FAMILY[name].ours(
        groups_of(params, name), backend=backend, **FAMILY[name].everything
    )
    shown = []

    def compare(k: int, optimizer: Any) -> None:
        host = [group["scheduled_lr"] for group in optimizer.param_groups]
        assert all(type(value) is float for value in host)
        assert optimizer.metrics()["scheduled_lr"] == pytest.approx(host, rel=1e-14)
        shown.append(tuple(host))

    drive(optimizer, params, min(STEPS[backend], 50), each=compare)
    assert len(set(shown)) > 3
