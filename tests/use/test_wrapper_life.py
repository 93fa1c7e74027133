"""ScheduleFreeWrapper as an optimizer among others: faults of the base, checkpoints, groups, hooks."""

import copy
import pickle
from typing import Any

import pytest
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
from test_wrapper import BASES, EVERYTHING, SHAPES, feed, groups_of, iterates_of
from torch import Tensor, nn

from sfplus_kernels import AdamWScheduleFree, ScheduleFreeWrapper


def make(
    base: str = "adamw", backend: str = "cpu", dtype: Any = torch.float64, **arguments: Any
) -> tuple[ScheduleFreeWrapper, list]:
    params = make_params(SHAPES, dtype, device_of(backend))
    arguments = arguments or EVERYTHING
    return ScheduleFreeWrapper(BASES[base](groups_of(params)), backend=backend, **arguments), params


def values(params: list) -> list[Tensor]:
    return [p.detach().clone() for p in params]


class Faulty(torch.optim.SGD):
    """Raises after it has moved the first ``moved`` parameters."""

    moved: int | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if self.moved is None:
            return super().step(closure)
        for p in self.param_groups[0]["params"][: self.moved]:
            p.add_(1)
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("steps", [0, 3])
def test_base_that_raises(backend: str, dtype: torch.dtype, decay: float, steps: int) -> None:
    """x, y and z of what it left alone are where they were, and the next step is as usual."""
    exact = dtype == torch.float64
    runs = []
    for _ in range(2):
        params = make_params([(7,), (33, 5), (0,)], dtype, device_of(backend))
        base = Faulty(params, lr=0.1)
        runs.append((ScheduleFreeWrapper(base, decay, backend=backend), params))
        feed(*runs[-1], steps, missing=0)
    optimizer, params = runs[0]
    optimizer.train()
    before, shown = iterates_of(optimizer, params), values(params)
    set_gradients(params, [torch.ones(p.shape) for p in params])
    optimizer.base.moved = 1  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    after = iterates_of(optimizer, params)
    tolerance = 1e-14 if exact else 1e-6
    torch.testing.assert_close(after[0][0], before[0][0], rtol=tolerance, atol=tolerance)
    moved = after[0][2] - before[0][2]
    torch.testing.assert_close(
        moved, torch.ones_like(moved), rtol=0, atol=1e-12 if exact and not decay else 0.07
    )
    for iterate, old in zip(after[1], before[1], strict=True):
        torch.testing.assert_close(iterate, old, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        params[1].detach(), shown[1], rtol=tolerance if exact else 0.01, atol=0
    )

    optimizer.base.moved = None  # type: ignore[attr-defined]
    for run in runs:
        feed(*run, steps + 2, skip=steps, missing=0)
    assert optimizer.metrics()["k"] == steps + 2
    twin = iterates_of(*runs[1])[1]
    for mine, theirs in zip(iterates_of(optimizer, params)[1], twin, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-12 if exact else 0.02)


class Rebinding(torch.optim.SGD):
    """Gives each parameter other memory, as some optimizers do."""

    fails = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = p.data - group["lr"] * p.grad
        if self.fails:
            raise KeyboardInterrupt


def test_base_that_gives_parameters_other_memory(backend: str) -> None:
    results = []
    for base in (torch.optim.SGD, Rebinding):
        params = make_params([(7,), (33, 5)], device=device_of(backend))
        optimizer = ScheduleFreeWrapper(base(params, lr=0.1), 0.1, backend=backend)
        feed(optimizer, params, 4, missing=0)
        results.append(iterates_of(optimizer, params))
    torch.testing.assert_close(results[1], results[0], rtol=1e-14, atol=1e-14)
    optimizer.base.fails = True  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    for after, before in zip(iterates_of(optimizer, params), results[1], strict=True):
        torch.testing.assert_close(after[0], before[0], rtol=1e-14, atol=1e-14)
        assert not torch.equal(after[2], before[2])


def test_lbfgs_is_refused_and_everything_is_put_back() -> None:
    params = make_params([(5,)])
    optimizer = ScheduleFreeWrapper(torch.optim.LBFGS(params))
    optimizer.train()
    before = values(params)
    params[0].grad = torch.ones_like(params[0])
    for closure in (None, lambda: 1.0):
        with pytest.raises(TypeError, match="closure"):
            optimizer.step(closure)
        assert_same_bits(values(params), before)


def test_bad_bases_and_settings() -> None:
    params = make_params([(5,)])
    with pytest.raises(TypeError, match="the base is a list; expected an optimizer of z"):
        ScheduleFreeWrapper(params)  # type: ignore[arg-type]
    own = AdamWScheduleFree(params)
    with pytest.raises(TypeError, match="AdamWScheduleFree, which averages already"):
        ScheduleFreeWrapper(own)
    base = torch.optim.SGD(params, lr=0.1)
    with pytest.raises(TypeError, match="ScheduleFreeWrapper, which averages already"):
        ScheduleFreeWrapper(ScheduleFreeWrapper(base))
    for arguments, message in (
        ({"momentum": 1.1}, "momentum is 1.1"),
        ({"weight_decay_at_y": -1.0}, "weight_decay_at_y is -1"),
        ({"weight_lr_power": -1.0}, "weight_lr_power is -1"),
        ({"r": float("nan")}, "r is nan"),
        ({"backend": "gpu"}, "unknown backend"),
    ):
        with pytest.raises(ValueError, match=message):
            ScheduleFreeWrapper(base, **arguments)  # type: ignore[arg-type]


def test_bad_calls_change_nothing() -> None:
    optimizer, params = make()
    with pytest.raises(RuntimeError, match="eval mode"):
        optimizer.step()
    feed(optimizer, params, 3)
    set_gradients(params, [torch.ones(p.shape) for p in params])
    before = everything_of(optimizer, params)
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    params[1].grad = None
    assert_same_bits(everything_of(optimizer, params), before)
    lr = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr is -1"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    assert_same_bits(values(params), before[1])
    optimizer.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        optimizer.step()


# Triton's interpreter is slow: there one of them
RESUMED = [
    (backend, base, dtype, mode)
    for backend in BACKENDS
    for base in ("sgd", "adamw", "rmsprop")
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for mode in ("train", "eval")
    if backend == "cpu" or (base, dtype, mode) == ("adamw", torch.bfloat16, "eval")
]


@pytest.mark.parametrize(("backend", "base", "dtype", "mode"), RESUMED)
def test_resumed_run_is_the_uninterrupted_one(
    backend: str, base: str, dtype: torch.dtype, mode: str
) -> None:
    runs = [make(base, backend, dtype) for _ in range(2)]
    for optimizer, params in runs:
        feed(optimizer, params, 5)
        getattr(optimizer, mode)()
    saved = through_a_file(everything_of(*runs[0]))
    assert_same_bits(saved, everything_of(*runs[1]))
    optimizer, params = runs[0]
    feed(optimizer, params, 9, skip=5)

    other, others = make(base, backend, dtype)
    with torch.no_grad():
        for p, value in zip(others, saved[1], strict=True):
            p.copy_(value)
    other.load_state_dict(saved[0])
    feed(other, others, 9, skip=5)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_go_on_alike(how: str) -> None:
    optimizer, params = make()
    assert isinstance(optimizer, torch.optim.Optimizer)
    feed(optimizer, params, 4)
    pair = (optimizer, params)
    other, others = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert other.base.param_groups[0]["params"][0] is others[0]
    for run in (pair, (other, others)):
        feed(*run, 8, skip=4)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


def test_base_loaded_directly_keeps_the_averages() -> None:
    (optimizer, params), (twin, twins) = make(), make()
    feed(optimizer, params, 4)
    feed(twin, twins, 4)
    optimizer.base.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
    assert optimizer.param_groups is optimizer.base.param_groups
    feed(optimizer, params, 7, skip=4)
    feed(twin, twins, 7, skip=4)
    assert_same_bits(everything_of(optimizer, params), everything_of(twin, twins))


def test_group_added_during_training() -> None:
    """It starts with k = 0 and in the mode of the others; a group that is refused leaves no trace."""
    optimizer, params = make("sgd")
    feed(optimizer, params, 3, missing=0)
    with pytest.raises(ValueError, match="share their memory"):
        optimizer.add_param_group({"params": [nn.Parameter(params[1].detach())]})
    assert len(optimizer.param_groups) == 2
    (new,) = make_params([(4,)], seed=5)
    start = new.detach().clone()
    optimizer.add_param_group({"params": [new], "lr": 0.5})
    feed(optimizer, [*params, new], 1, missing=0)
    gradient = new.grad
    assert gradient is not None
    x, _, z = optimizer.iterates(new)  # the first step: x = z
    torch.testing.assert_close(x, z)
    torch.testing.assert_close(z, start - 0.5 * (gradient + 0.3 * start))
    assert optimizer.metrics()["scheduled_lr"] == [0.02, 0.03, 0.5]
    assert [g["averaging"]["k"] for g in optimizer.state_dict()["param_groups"]] == [4, 4, 1]


def test_hooks_closures_and_zero_grad() -> None:
    optimizer, params = make("sgd")
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.base.register_step_pre_hook(lambda *_: seen.append("base"))
    optimizer.train()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        assert isinstance(loss, Tensor)
        loss.backward()
        seen.append("closure")
        return loss

    with torch.no_grad():
        first, second = optimizer.step(closure), optimizer.step(closure)
    assert seen == ["before", "closure", "base", "after"] * 2
    assert first is not None
    assert second < first
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@pytest.mark.parametrize(
    "ask", [lambda o: o.eval(), lambda o: o.state_dict(), lambda o: o.iterates(o.probe)]
)
def test_a_hook_of_the_base_cannot_see_or_move_half_a_step(ask: Any) -> None:
    """The parameters hold z there; the step is taken back."""
    optimizer, params = make("sgd")
    feed(optimizer, params, 3, missing=0)
    before = iterates_of(optimizer, params)
    handle = optimizer.base.register_step_pre_hook(lambda *_: ask(optimizer))
    optimizer.probe = params[1]  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="not in a hook of the base"):
        feed(optimizer, params, 4, skip=3, missing=0)
    handle.remove()
    for after, old in zip(iterates_of(optimizer, params), before, strict=True):
        torch.testing.assert_close(after, old, rtol=1e-13, atol=1e-13)
    feed(optimizer, params, 5, skip=4, missing=0)
    assert optimizer.metrics()["k"] == 4
