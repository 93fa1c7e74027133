"""Every backend against the reference class (x, y, z explicit)."""

from typing import Any

import pytest
import torch
from support import (
    BACKENDS,
    EVERYTHING,
    SHAPES,
    device_of,
    make_params,
    run,
    set_gradients,
    steps_for,
    stream,
    two_groups,
)

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

CAP = 0.003  # of the steps of these streams about half are cut down to it

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "beta 0": {"sf_beta1": 0.0, "weight_decay": 1.0},
    "beta 1": {"sf_beta1": 1.0, "weight_decay": 1.0},
    "annealed down to the max early": {"sf_beta1": 0.5, "sf_beta1_anneal_steps": 5, "lr": 0.3},
    "no moments": {"betas": (0.0, 0.0), "lr": 0.1, "weight_decay": 0.5},
    "power 0": {"weight_lr_power": 0, "r": 0.5, "polyak_beta": 0.99},
    "c_warmup alone": {"c_warmup": 10, "weight_decay": 2.0},
    "maximize": {"maximize": True, "f_star": 5.0, "weight_decay": 1.0, "lr": 0.5},
    "f_star": {"f_star": 1.5, "lr": 0.7},
    "a cap on gamma": {**EVERYTHING, "max_lr": CAP},
}
# Triton's interpreter is slow: there with missing gradients only, and not every pair of dtypes
BACKEND_CASES = [
    (backend, case, missing)
    for backend in BACKENDS
    for case in CASES
    for missing in (0.0, 0.4)
    if backend != "triton" or missing > 0
]
HALVES = [torch.bfloat16, torch.float16]
BACKEND_DTYPES = [
    (backend, param, grad)
    for backend in BACKENDS
    for param in (torch.float32, *HALVES)
    for grad in (torch.float64, torch.float32, *HALVES)
    if backend != "triton" or grad in (param, torch.float64)
]


def distance(optimizer: AdamCScheduleFreePlus, params: list, reference: Any, truth: list) -> float:
    """The largest difference of x, y, z over all parameters, relative to the parameter's size."""
    largest = 0.0
    for mine, theirs in zip(params, truth, strict=True):
        expected = reference.state.get(theirs)
        for name, value in optimizer.iterates(mine)._asdict().items():
            target = theirs.detach() if expected is None else expected[name]
            if target.numel():
                error = (value.cpu() - target).abs().max() / target.abs().max().clamp(min=1)
                largest = max(largest, float(error))
    return largest


@pytest.mark.parametrize(("backend", "case", "missing"), BACKEND_CASES)
def test_float64_agrees_with_the_reference(backend: str, case: str, missing: float) -> None:
    device = device_of(backend)
    params, truth = make_params(device=device), make_params()
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **CASES[case])
    reference = AdamCScheduleFreePlusReference(two_groups(truth), **CASES[case])
    steps = steps_for(backend, 100)
    run(optimizer, params, steps, missing=missing)
    run(reference, truth, steps, missing=missing)
    moved = max(
        float((p.detach().cpu() - q.detach()).abs().max())
        for p, q in zip(params, make_params(), strict=True)
        if p.numel()
    )
    assert moved > 1e-3  # both stood still is not agreement
    assert distance(optimizer, params, reference, truth) < 1e-10
    for group, expected in zip(
        optimizer.state_dict()["param_groups"], reference.param_groups, strict=True
    ):
        for key in ("k", "weight_sum", "lr_max", "ckp1", "scheduled_lr"):
            assert group[key] == pytest.approx(expected[key], rel=1e-10), key


@pytest.mark.parametrize(("backend", "param_dtype", "grad_dtype"), BACKEND_DTYPES)
def test_low_precision_is_as_good_as_plain_torch(
    backend: str, param_dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    """Error against float64, beside that of the reference class run in float32.

    The start values and gradients are representable in every dtype here, so all runs see the same.
    """
    steps = steps_for(backend, 100)
    shapes = [*SHAPES, (401, 13)]
    device = device_of(backend)

    def start(dtype: torch.dtype, device: torch.device | str = "cpu") -> list[torch.nn.Parameter]:
        coarse = make_params(shapes, torch.float64)
        return [torch.nn.Parameter(p.detach().to(param_dtype).to(device, dtype)) for p in coarse]

    def run_rounded(optimizer: Any, params: list, dtype: torch.dtype) -> None:
        optimizer.train()
        for loss, gradients in stream([p.shape for p in params], steps, missing=0.1):
            rounded = [None if g is None else g.to(grad_dtype).double() for g in gradients]
            set_gradients(params, rounded, dtype)
            optimizer.step(loss=loss)

    params = start(param_dtype, device)
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    run_rounded(optimizer, params, grad_dtype)
    peer_params, truth = start(torch.float32), start(torch.float64)
    peer = AdamCScheduleFreePlusReference(two_groups(peer_params), **EVERYTHING)
    run_rounded(peer, peer_params, torch.float32)
    reference = AdamCScheduleFreePlusReference(two_groups(truth), **EVERYTHING)
    run_rounded(reference, truth, torch.float64)

    for name in "xyz":
        mine, theirs = [], []
        for p, q, t in zip(params, peer_params, truth, strict=True):
            if t in reference.state:
                exact = reference.state[t][name].flatten()
                value = getattr(optimizer.iterates(p), name).cpu()
                assert value.dtype == torch.float32
                mine.append((value.double().flatten() - exact).abs())
                theirs.append((peer.state[q][name].double().flatten() - exact).abs())
        ours, plain = torch.cat(mine), torch.cat(theirs)
        assert ours.mean() <= 1.2 * plain.mean(), name
        assert ours.max() <= 2 * plain.max(), name
    if param_dtype != torch.float32:  # the parameter is the rounding of y
        for p in params:
            if optimizer.state.get(p):
                assert torch.equal(p.detach(), optimizer.state[p]["master_param"].to(param_dtype))


def test_different_settings_give_different_results(backend: str) -> None:
    """Each hyperparameter matters: otherwise the parity above would prove little."""
    changes: dict[str, Any] = {
        "lr": 0.4,
        "betas": (0.8, 0.95),
        "sf_beta1": 0.7,
        "eps": 1e-3,
        "weight_decay": 1.0,
        "r": 2.0,
        "polyak_beta": 0.2,
        "c_warmup": 2,
        "sf_beta1_anneal_steps": 3,
        "sf_beta1_max": 0.9,
        "weight_lr_power": 1.0,
        "warmup_steps": 2,
        "f_star": 1.0,
        "max_lr": CAP,
    }
    if backend == "triton" and device_of(backend).type == "cpu":  # the interpreter is slow
        changes = {name: changes[name] for name in ("betas", "polyak_beta", "f_star")}
    results = []
    for change in [{}, *({name: value} for name, value in changes.items())]:
        params = make_params([(5, 3)], device=device_of(backend))
        run(AdamCScheduleFreePlus(params, backend=backend, **(EVERYTHING | change)), params, 10)
        results.append(params[0].detach().cpu())
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert not torch.equal(first, second)
