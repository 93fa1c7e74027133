"""ScheduleFreeWrapper beside its reference and upstream, around bases of several kinds."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from support import BACKENDS, device_of, make_params, set_gradients, stream
from support.family import difference, set_train_mode
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from sfplus_kernels import ScheduleFreeWrapper
from sfplus_kernels.reference import ScheduleFreeWrapperReference

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.02),
    "sgd, momentum": functools.partial(torch.optim.SGD, lr=0.02, momentum=0.5, weight_decay=0.1),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01, betas=(0.5, 0.9)),
    "adamw, foreach": functools.partial(torch.optim.AdamW, lr=0.01, foreach=True),
    "adamw, fused": functools.partial(torch.optim.AdamW, lr=0.01, fused=True),
    "adamw, lr tensor": functools.partial(torch.optim.AdamW, lr=torch.tensor(0.01), foreach=False),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.005),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.05),
}
EVERYTHING: dict[str, Any] = {
    "weight_decay_at_y": 0.3,
    "momentum": 0.8,
    "weight_lr_power": 1.0,
    "r": 1.0,
}
SHAPES = [(0,), (7,), (33, 5), (), (257,)]
BACKEND_BASES = [
    (backend, base)
    for backend in BACKENDS
    for base in BASES
    if backend != "triton" or base in ("sgd, momentum", "adamw")
]


def groups_of(params: list) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.03}]


def feed(
    optimizer: Any,
    params: list,
    steps: int,
    *,
    skip: int = 0,
    missing: float = 0.3,
    each: Callable[[int], None] | None = None,
) -> None:
    set_train_mode(optimizer)
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps, missing=missing)):
        if k >= skip:
            set_gradients(params, gradients)
            optimizer.step()
            if each is not None:
                each(k)


def iterates_of(optimizer: Any, params: list) -> list[tuple[Tensor, ...]]:
    if isinstance(optimizer, ScheduleFreeWrapper):
        return [tuple(value.cpu() for value in optimizer.iterates(p)) for p in params]
    start = [{name: p.detach() for name in "xyz"} for p in params]
    found = [optimizer.iterates.get(p, first) for p, first in zip(params, start, strict=True)]
    return [tuple(its[name] for name in "xyz") for its in found]


@pytest.mark.parametrize(("backend", "base"), BACKEND_BASES)
@pytest.mark.parametrize("everything", [False, True])
def test_float64_agrees_with_the_reference(backend: str, base: str, everything: bool) -> None:
    """Two groups, a learning rate that changes and is 0 at first, modes; gradients are missing."""
    arguments = EVERYTHING if everything else {}
    params, truth = make_params(SHAPES, device=device_of(backend)), make_params(SHAPES)
    start = [(p.detach().clone(),) * 3 for p in truth]
    mine = ScheduleFreeWrapper(BASES[base](groups_of(params)), backend=backend, **arguments)
    reference = ScheduleFreeWrapperReference(BASES[base](groups_of(truth)), **arguments)
    steps = 8 if backend == "triton" else 60
    for optimizer, its in ((mine, params), (reference, truth)):
        first = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = 0.0 * first

        def change(k: int, optimizer: Any = optimizer, first: Any = first) -> None:
            optimizer.param_groups[0]["lr"] = first * (0 if k < 2 else 1 + k % 3)
            if k % 3 == 1:
                optimizer.eval()
                optimizer.train()

        feed(optimizer, its, steps, each=change)
    expected = iterates_of(reference, truth)
    assert difference(expected, start) > 1e-2
    assert difference(iterates_of(mine, params), expected) < 1e-10
    figures = mine.metrics()
    for number, averaging in enumerate(reference.averaging):
        for key in ("lr_max", "weight_sum", "ckp1", "scheduled_lr"):
            assert figures[key][number] == pytest.approx(averaging[key], rel=1e-10), key


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("base", ["sgd", "sgd, momentum", "adagrad"])
def test_float64_agrees_with_upstream(base: str, everything: bool, reference: bool) -> None:
    """Where upstream works: no 0-dim tensors, and bases that do not fill their state at first use."""
    arguments, shapes = (EVERYTHING if everything else {}), [(7,), (33, 5), (257,)]
    params, others = make_params(shapes), make_params(shapes)
    make = ScheduleFreeWrapperReference if reference else ScheduleFreeWrapper
    mine = make(BASES[base](params), **arguments)
    theirs = schedulefree.ScheduleFreeWrapper(BASES[base](others), **arguments)
    for optimizer, its in ((mine, params), (theirs, others)):
        feed(optimizer, its, 300, missing=0.3)
    z = [theirs.state[p]["z"] for p in others]
    y = [p.detach().clone() for p in others]
    theirs.eval()
    expected = list(zip([p.detach() for p in others], y, z, strict=True))
    assert difference(iterates_of(mine, params), expected) < 1e-10


@pytest.mark.parametrize("base", ["adamw", "rmsprop"])
def test_bases_that_upstream_breaks(backend: str, base: str) -> None:
    """Upstream writes z into the base's state before the base has filled it, and the base fails."""
    others = make_params([(5, 3)])
    theirs = schedulefree.ScheduleFreeWrapper(BASES[base](others))
    with pytest.raises(KeyError):
        feed(theirs, others, 1, missing=0)
    params = make_params([(5, 3)], device=device_of(backend))
    before = params[0].detach().clone()
    mine = ScheduleFreeWrapper(BASES[base](params), backend=backend)
    feed(mine, params, 3, missing=0)
    assert mine.metrics()["k"] == 3
    assert not torch.equal(params[0].detach(), before)


def test_scalars_and_learning_rate_zero_that_upstream_cannot() -> None:
    scalar = make_params([()])
    with pytest.raises(RuntimeError, match="cannot be 0 to view"):
        feed(schedulefree.ScheduleFreeWrapper(BASES["sgd"](scalar)), scalar, 1, missing=0)
    params = make_params([(5,)])
    with pytest.raises(ZeroDivisionError):
        feed(
            schedulefree.ScheduleFreeWrapper(torch.optim.SGD(params, lr=0.0)), params, 1, missing=0
        )
    params = make_params([(), (5,)])
    before = [p.detach().clone() for p in params]
    optimizer = ScheduleFreeWrapper(torch.optim.SGD(params, lr=0.0))
    feed(optimizer, params, 3, missing=0)
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert optimizer.metrics()["ckp1"] == [0.0]
    optimizer.param_groups[0]["lr"] = 0.1
    feed(optimizer, params, 5, skip=3, missing=0)
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert all(bool(p.isfinite().all()) for p in params)


def test_arguments_are_upstreams() -> None:
    ours = inspect.signature(ScheduleFreeWrapper).parameters
    upstream = inspect.signature(schedulefree.ScheduleFreeWrapper).parameters
    assert list(ours) == [*upstream, "state_format", "backend"]
    assert all(ours[key].default == value.default for key, value in upstream.items())


def test_different_settings_give_different_results() -> None:
    results = []
    changes = {"weight_decay_at_y": 0.1, "momentum": 0.5, "weight_lr_power": 2.0, "r": 2.0}
    for change in [{}, *({key: value} for key, value in changes.items())]:
        params = make_params([(5, 3)])
        base = torch.optim.SGD(params, lr=0.05)
        optimizer = ScheduleFreeWrapper(base, **{**EVERYTHING, **change})
        scheduler = StepLR(base, 3, 2.0)
        feed(optimizer, params, 9, each=lambda _, scheduler=scheduler: scheduler.step())
        results.append(params[0].detach())
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert not torch.equal(first, second)


@pytest.mark.parametrize("on_base", [False, True])
def test_lr_scheduler_on_the_wrapper_or_the_base(on_base: bool) -> None:
    params, truth = make_params(SHAPES), make_params(SHAPES)
    mine = ScheduleFreeWrapper(BASES["adamw"](groups_of(params)), **EVERYTHING)
    reference = ScheduleFreeWrapperReference(BASES["adamw"](groups_of(truth)), **EVERYTHING)
    schedulers = [StepLR(o, 4, 0.5) for o in (mine.base if on_base else mine, reference.base)]
    feed(mine, params, 12, each=lambda _: schedulers[0].step())
    feed(reference, truth, 12, each=lambda _: schedulers[1].step())
    assert mine.metrics()["scheduled_lr"] == pytest.approx([0.0025, 0.0075])
    assert difference(iterates_of(mine, params), iterates_of(reference, truth)) < 1e-12


def test_learning_rate_factor_of_the_base_scales_weights_and_decay() -> None:
    """``d`` of Prodigy and D-Adaptation, which changes in their step."""

    class WithD(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["d"] = group.get("d", 0.5) * 1.1
            return super().step(closure)

    params, truth = make_params([(5, 3)]), make_params([(5, 3)])
    mine = ScheduleFreeWrapper(WithD(params, lr=0.1), **EVERYTHING)
    reference = ScheduleFreeWrapperReference(WithD(truth, lr=0.1), **EVERYTHING)
    feed(mine, params, 6)
    feed(reference, truth, 6)
    d = mine.param_groups[0]["d"]
    assert mine.metrics()["scheduled_lr"] == pytest.approx([0.1 * d])
    assert difference(iterates_of(mine, params), iterates_of(reference, truth)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters(backend: str, dtype: torch.dtype) -> None:
    """Each step of the base is added to the float32 z: steps below the rounding are not lost."""
    params = [nn.Parameter(torch.ones(300, dtype=dtype, device=device_of(backend)))]
    optimizer = ScheduleFreeWrapper(torch.optim.SGD(params, lr=0.125), backend=backend)
    optimizer.train()
    for _ in range(8):
        params[0].grad = torch.full_like(params[0], 0.25)
        optimizer.step()
    assert optimizer.base.state_dict()["state"] == {}  # ours is beside it
    x, y, z = optimizer.iterates(params[0])
    assert {t.dtype for t in (x, y, z)} == {torch.float32}
    torch.testing.assert_close(z, torch.full_like(z, 1 - 8 * 0.125 * 0.25), rtol=0.005, atol=0)
    assert torch.equal(params[0].detach(), y.to(dtype))
    optimizer.eval()
    assert torch.equal(params[0].detach(), x.to(dtype))
    assert float(x[0]) > float(z[0])


def awkward(kind: str) -> Tensor:
    storage = torch.randn(4 * 36 + 1, generator=torch.Generator().manual_seed(0))
    return {
        "transposed": storage[:36].view(4, 9).t(),
        "misaligned": storage[1:37].view(4, 9),
        "strided": storage[:72].view(4, 18)[:, ::2],
        "channels_last": storage[:144].view(4, 9, 2, 2).to(memory_format=torch.channels_last),
    }[kind]


@pytest.mark.parametrize("kind", ["transposed", "misaligned", "strided", "channels_last"])
def test_layouts_in_memory(backend: str, kind: str) -> None:
    value = awkward(kind).to(device_of(backend))
    params = [nn.Parameter(value), nn.Parameter(torch.ones(3, device=value.device))]
    twins = copy.deepcopy([p.detach().cpu().contiguous() for p in params])
    mine = ScheduleFreeWrapper(BASES["adamw"](params), backend=backend, **EVERYTHING)
    truth = [nn.Parameter(t) for t in twins]
    reference = ScheduleFreeWrapperReference(BASES["adamw"](truth), **EVERYTHING)
    assert params[0].stride() == value.stride()
    feed(mine, params, 4, missing=0)
    feed(reference, truth, 4, missing=0)
    assert difference(iterates_of(mine, params), iterates_of(reference, truth)) < 1e-5
