"""Whatever is done to ``state`` and ``param_groups``: the next steps are those of one that has only them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import BACKENDS, assert_same_bits, device_of, make_params, set_gradients
from support.family import FAMILY, groups_of, step_with
from support.plain import PLAIN, plain_groups
from torch import Tensor
from truth.hands import HANDS, LAYOUTS

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, ScheduleFreeWrapper
from sfplus_kernels.engine.validity import PythonWitness, new_witness

WITHOUT_AVERAGES = {"plain adam": "adamc", "plain sgd": "sgd"}
CLASSES = [*FAMILY, "plus", "wrapper", *WITHOUT_AVERAGES]
SHAPES = [(3,), (4, 3), (0,), (2, 5), ()]


class Plus(AdamCScheduleFreePlus):
    """Takes a loss; here always the same."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(loss=2.0)


def make(name: str, backend: str, dtype: torch.dtype) -> tuple[Any, list[Tensor]]:
    params = make_params(SHAPES, dtype, device_of(backend))
    halves = [{"params": params[:2]}, {"params": params[2:]}]
    if name == "plus":
        settings = {"sf_beta1_anneal_steps": 9, "polyak_beta": 0.5, "weight_decay": 1.0}
        return Plus(halves, lr=0.1, backend=backend, **settings), params
    if name == "wrapper":
        base = torch.optim.AdamW(halves, lr=0.01, foreach=False)
        return ScheduleFreeWrapper(base, backend=backend), params
    if name in WITHOUT_AVERAGES:
        member = PLAIN[WITHOUT_AVERAGES[name]]
        groups = plain_groups(params, WITHOUT_AVERAGES[name])
        return member.ours(groups, backend=backend, **member.everything), params
    arguments = {**FAMILY[name].everything, "backend": backend}
    if name.startswith("adamw"):
        arguments["inner_momentum"] = 0.5
    return FAMILY[name].ours(groups_of(params, name), **arguments), params


def gradients_of(params: list[Tensor], k: int) -> list[Tensor | None]:
    """Some have none, from the third step on always the same, so that only the hand can spoil a plan."""
    generator = torch.Generator().manual_seed(k)
    gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    return [
        g if p.requires_grad and (min(k, 2) + i) % 4 else None
        for i, (p, g) in enumerate(zip(params, gradients, strict=True))
    ]


def steps(optimizer: Any, params: list[Tensor], first: int, last: int) -> None:
    for k in range(first, last):
        step_with(optimizer, functools.partial(set_gradients, params, gradients_of(params, k)))


def all_of(optimizer: Any, params: list[Tensor]) -> Any:
    own = getattr(optimizer, "_averaging", optimizer)
    states = [
        dict(sorted(one.state.get(p, {}).items())) for one in (own, optimizer) for p in params
    ]
    return [p.detach() for p in params], states, optimizer.metrics()


def backends_of(name: str) -> list[str]:
    """In Triton's interpreter, which is slow, the two that differ most."""
    return [b for b in BACKENDS if b != "triton" or name in ("adamw", "plus")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name in CLASSES for backend in backends_of(name)]
)
def test_the_next_steps_are_those_of_the_containers(
    name: str, backend: str, dtype: torch.dtype
) -> None:
    for what, do in HANDS.items():
        if name == "wrapper" and what == "state_is_another_dict":
            continue  # it is the base's
        if what == "a_moment_of_another_dtype" and (name == "wrapper" or dtype == torch.bfloat16):
            continue  # torch's own, or no other dtype
        optimizer, params = make(name, backend, dtype)
        optimizer.train()
        steps(optimizer, params, 0, 3)
        do(optimizer, params)
        # a copy has nothing but the containers
        twin, twins = copy.deepcopy((optimizer, params))
        for one, its in ((optimizer, params), (twin, twins)):
            steps(one, its, 3, 5)
            one.eval()
            one.train()
            steps(one, its, 5, 6)
        assert_same_bits(all_of(optimizer, params), all_of(twin, twins), what)


def dense(gradient: Tensor) -> Tensor:
    """The same numbers, one after the other."""
    return gradient.contiguous().resolve_neg().clone()


def give_laid_out(params: list[Tensor], k: int, lay: Callable[[Tensor], Tensor]) -> None:
    set_gradients(params, gradients_of(params, k))
    for p in params:
        if p.grad is not None and k > 1:
            p.grad = lay(p.grad)


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, b) for name in ("adamw", "sgd", "plus", "wrapper") for b in backends_of(name)],
)
def test_gradients_of_any_layout(name: str, backend: str) -> None:
    """As dense ones of the same numbers, also where they come after such, and where they stay."""
    for what, layout in LAYOUTS.items():
        ends = []
        for lay in (layout, lambda g, layout=layout: dense(layout(g))):
            optimizer, params = make(name, backend, torch.float64)
            optimizer.train()
            for k in range(4):
                step_with(optimizer, functools.partial(give_laid_out, params, k, lay))
            step_with(optimizer, lambda: None)
            ends.append(all_of(optimizer, params))
        if backend == "eager":  # torch adds up in another order where memory has another
            torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12, equal_nan=True, msg=what)
        else:
            assert_same_bits(*ends, what)


def shrunk_in_place(tensor: Tensor) -> bool:
    """Whether its storage, made smaller again and again, came to lie where it was before."""
    before, storage = tensor.data_ptr(), tensor.untyped_storage()
    for _ in range(8):
        storage.resize_(storage.nbytes() - 4)
        if tensor.data_ptr() == before:
            return True
    return False


@pytest.mark.parametrize("native", [True, False])
def test_a_smaller_storage_at_the_same_address(native: bool) -> None:
    """Only its size tells that the last elements are not there any more."""
    there = False
    for _ in range(5000):  # the allocator does it once in thirty times
        param = torch.nn.Parameter(torch.randn(64))
        state = {param: {"displacement": torch.randn(64)}}
        witness = new_witness() if native else PythonWitness()
        assert witness.note([{"params": [param]}], state, False)
        there = shrunk_in_place(state[param]["displacement"])
        assert witness.look([{"params": [param]}], state, False) is None
        if there:
            break
    if not there:
        pytest.skip("the allocator moved the memory each time")


@pytest.mark.parametrize("what", ["parameter", "state", "gradient"])
@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_storages_that_shrink_twice(what: str, backend: str) -> None:
    """After a first time that was not seen by a step."""
    params = make_params([(64,), (64,)])
    optimizer = AdamWScheduleFree(params, backend=backend)
    optimizer.train()
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    before, last = params[0].detach().clone(), params[1]
    of_state = optimizer.state[last]["displacement"]
    gone = {"parameter": last, "state": of_state, "gradient": last.grad}[what]
    assert gone is not None
    for elements in (40, 20):
        gone.untyped_storage().resize_(elements * gone.element_size())
    with pytest.raises(ValueError, match="no memory"):
        optimizer.step()
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_memory_that_went_away_is_never_touched(name: str, backend: str) -> None:
    """A clear error, and nothing is written."""
    for of_state in (False, True):
        optimizer, params = make(name, backend, torch.float32)
        optimizer.train()
        steps(optimizer, params, 0, 2)
        own = getattr(optimizer, "_averaging", optimizer)
        kept = [value for value in own.state[params[1]].values() if value.dim() > 0]
        gone = kept[-1] if of_state else params[1]
        gone.untyped_storage().resize_(4)
        others = [p.detach().clone() for p in params if p is not gone]
        with pytest.raises(ValueError, match="no memory"):
            steps(optimizer, params, 2, 3)
        assert_same_bits([p.detach() for p in params if p is not gone], others)
