"""Several optimizers that share one step size: the run of one optimizer with all parameters."""

import copy
import gc
from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    SHAPES,
    assert_same_bits,
    device_of,
    make_params,
    set_gradients,
    snapshot,
    stream,
)

from sfplus_kernels import AdamCScheduleFreePlus, SharedStep

ARGUMENTS = {**EVERYTHING, "max_grad_norm": 20.0}


def make_three(backend: str) -> tuple[list[Any], list[Any]]:
    """Three optimizers over all parameters; the last has one that seldom has a gradient."""
    params, shared = make_params(device=device_of(backend)), SharedStep()
    parts = (params[:3], params[3:7], params[7:])
    optimizers = [
        AdamCScheduleFreePlus(part, shared_step=shared, backend=backend, **ARGUMENTS)
        for part in parts
    ]
    for optimizer in optimizers:
        optimizer.train()
    return optimizers, params


def test_the_run_of_one_optimizer(backend: str) -> None:
    """In any order of their steps; a NaN with one of them makes all skip."""
    optimizers, params = make_three(backend)
    whole = make_params(device=device_of(backend))
    groups = [{"params": whole[:3]}, {"params": whole[3:7]}, {"params": whole[7:]}]
    one = AdamCScheduleFreePlus(groups, backend=backend, **ARGUMENTS)
    one.train()
    for k, (loss, gradients) in enumerate(stream(SHAPES, 12, missing=0.4)):
        if k == 5:
            gradients[1] = torch.full(SHAPES[1], float("nan"))
        if k == 7:
            gradients = [None] * len(SHAPES)
        set_gradients(whole, gradients)
        one.step(loss=loss)
        set_gradients(params, gradients)
        for optimizer in optimizers[:: 1 if k % 2 else -1]:
            optimizer.step(loss=loss)
    expected = one.metrics()
    assert expected["skipped_steps"] == 1
    assert expected["k"] == 10
    for optimizer in optimizers:
        found = optimizer.metrics()
        for key in ("polyak_lr", "grad_norm", "ip_term", "k", "skipped_steps"):
            assert found[key] == pytest.approx(expected[key], rel=1e-12), key
    for p, q in zip(params, whole, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-12)


def test_without_it_each_has_a_step_size_of_its_own() -> None:
    results = []
    for shared in (SharedStep(), None):
        params = make_params()
        optimizers = [
            AdamCScheduleFreePlus(part, shared_step=shared, **ARGUMENTS)
            for part in (params[:3], params[3:])
        ]
        for optimizer in optimizers:
            optimizer.train()
        for loss, gradients in stream(SHAPES, 2):
            set_gradients(params, gradients)
            for optimizer in optimizers:
                optimizer.step(loss=loss)
        results.append([o.metrics()["polyak_lr"] for o in optimizers])
    assert results[0][0] == results[0][1]
    assert results[1][0] != results[1][1]


def test_a_member_that_cannot_step_stops_the_first() -> None:
    optimizers, params = make_three("cpu")
    for loss, gradients in stream(SHAPES, 2):
        set_gradients(params, gradients)
        for optimizer in optimizers:
            optimizer.step(loss=loss)
    optimizers[1].eval()
    before = [snapshot(o, []) for o in optimizers], [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="in eval mode"):
        optimizers[0].step(loss=1.0)
    assert_same_bits(([snapshot(o, []) for o in optimizers], [p.detach() for p in params]), before)


def test_members_have_the_same_global_settings() -> None:
    shared = SharedStep()
    first = AdamCScheduleFreePlus(make_params([(3,)]), sf_beta1=0.9, shared_step=shared)
    with pytest.raises(ValueError, match=r"sf_beta1=0.8, group 0 has 0.9"):
        AdamCScheduleFreePlus(make_params([(3,)]), sf_beta1=0.8, shared_step=shared)
    assert shared.members == [first]


def test_sums_that_wait_for_a_member_that_is_gone_go_to_nobody() -> None:
    """Least of all to a new one that happens to get its identity."""
    optimizers, params = make_three("cpu")
    loss, gradients = next(iter(stream(SHAPES, 1)))
    set_gradients(params, gradients)
    optimizers[0].step(loss=loss)
    shared = optimizers[0]._shared_step
    assert set(shared._waiting) == set(optimizers[1:])
    del optimizers[1]
    gc.collect()
    assert set(shared._waiting) == set(optimizers[1:])


def test_members_that_are_gone_are_forgotten_and_copies_stand_alone() -> None:
    optimizers, _ = make_three("cpu")
    shared = optimizers[0]._shared_step
    assert len(shared.members) == 3
    assert copy.deepcopy(optimizers[0])._shared_step is None
    del optimizers[1]
    gc.collect()
    assert shared.members == optimizers
