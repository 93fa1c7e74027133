"""C of refined Schedule-Free, which makes the width of the average a setting of its own.

Against the reference it runs in test_family.py.
"""

import copy
from typing import Any

import pytest
import torch
from support import assert_same_bits, device_of, make_params, set_gradients, stream

from sfplus_kernels import AdamWScheduleFree

SHAPES = [(7,), (33, 5), ()]
STEPS = 10


def run(backend: str, steps: int = STEPS, **arguments: Any) -> tuple[Any, list, list[float]]:
    """Some steps at a constant rate: optimizer, parameters, and c_k of each step."""
    params = make_params(SHAPES, device=device_of(backend))
    optimizer = AdamWScheduleFree(params, lr=0.02, weight_decay=0.1, backend=backend, **arguments)
    optimizer.train()
    weights = []
    for _, gradients in stream(SHAPES, steps):
        set_gradients(params, gradients)
        optimizer.step()
        weights += optimizer.metrics()["ckp1"]
    return optimizer, params, weights


@pytest.mark.parametrize("c", [0.5, 3.0, 20.0])
def test_the_averaging_weight_is_the_papers(backend: str, c: float) -> None:
    """gamma^2 over its sum is 1 / t at a constant rate."""
    *_, weights = run(backend, betas=(0.9, 0.99), decoupling_c=c)
    expected = [min((1 - 0.9) * c / (k + 1), 1.0) for k in range(STEPS)]
    assert weights == pytest.approx(expected, rel=1e-12)


def test_c_that_undoes_beta_changes_no_bit(backend: str) -> None:
    results = []
    for c in (None, 2.0):
        optimizer, params, _ = run(backend, betas=(0.5, 0.99), decoupling_c=c)
        results.append([[p.detach(), *optimizer.state[p].values()] for p in params])
    assert_same_bits(*results)


def test_a_width_of_one_step_is_z(backend: str) -> None:
    """c = 1 throughout: x is z, and nothing is lost of it."""
    optimizer, params, weights = run(backend, decoupling_c=1e6)
    assert weights == [1.0] * STEPS
    for p, start in zip(params, make_params(SHAPES, device=device_of(backend)), strict=True):
        assert torch.equal(optimizer.iterates(p).x, optimizer.iterates(p).z)
        assert not torch.equal(p, start)


def test_it_may_be_changed_and_is_saved() -> None:
    optimizer, params, _ = run("cpu", 3)
    assert optimizer.metrics()["ckp1"] == [pytest.approx(1 / 3)]
    optimizer.param_groups[0]["decoupling_c"] = 20.0
    set_gradients(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    assert optimizer.metrics()["ckp1"] == [pytest.approx(0.1 * 20 / 4)]
    other = AdamWScheduleFree(make_params(SHAPES))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["decoupling_c"] == 20.0


def test_an_older_state_has_none() -> None:
    optimizer, *_ = run("cpu", 3)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0]["decoupling_c"]
    other = AdamWScheduleFree(make_params(SHAPES))
    other.load_state_dict(saved)
    assert other.param_groups[0]["decoupling_c"] is None
