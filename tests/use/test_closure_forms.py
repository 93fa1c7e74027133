"""The closure forms: the parameters hold x between steps, whatever happens inside one."""

import contextlib
import functools
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
    stream,
)
from support.family import CLOSURE, drive, groups_of
from test_wrapper import awkward
from torch import Tensor, nn

from sfplus_kernels import SGDScheduleFreeClosure

SHAPES = [(7,), (33, 5), (), (0,)]
# Triton's interpreter is slow: there one of the three
BACKEND_NAMES = [
    (backend, name)
    for backend in BACKENDS
    for name in CLOSURE
    if backend != "triton" or name == "adamw closure"
]


def make(name: str, backend: str = "cpu", dtype: Any = torch.float64, **more: Any) -> tuple:
    params = make_params(SHAPES, dtype, device_of(backend))
    arguments = {**CLOSURE[name].everything, **more}
    return CLOSURE[name].ours(groups_of(params, name), backend=backend, **arguments), params


def values(params: list) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-14) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def ones_for(params: list) -> None:
    set_gradients(params, [torch.ones(p.shape) for p in params])


@pytest.mark.parametrize(("backend", "name"), BACKEND_NAMES)
def test_parameter_without_gradient_stays(backend: str, name: str) -> None:
    """Upstream moves it to y at each step and never back, so that it runs away to z."""

    def run(make: Any, params: list, **more: Any) -> tuple[Tensor, Tensor]:
        optimizer = make(params, **{**CLOSURE[name].everything, "lr": 0.5}, **more)
        drive(optimizer, params, 8)
        before = params[0].detach().clone()

        def closure() -> None:
            ones_for(params)
            params[0].grad = None

        for _ in range(4):
            optimizer.step(closure)
        return params[0].detach(), before

    after, before = run(CLOSURE[name].upstream, make_params([(7,), (5,)]), foreach=False)
    assert float((after - before).abs().max()) > 1e-4
    params = make_params([(7,), (5,)], device=device_of(backend))
    after, before = run(CLOSURE[name].ours, params, backend=backend)
    close([after], [before])


class Stop(Exception):
    pass


@pytest.mark.parametrize(("backend", "name"), BACKEND_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_closure_that_raises_leaves_x(backend: str, name: str, dtype: torch.dtype) -> None:
    """The rounding of there and back does not add up, and the next step is as if it had not been."""
    (optimizer, params), (twin, twins) = make(name, backend, dtype), make(name, backend, dtype)
    for o, its in ((optimizer, params), (twin, twins)):
        drive(o, its, 4)
    x = values(params)
    seen = []

    def closure() -> None:
        seen.append(not torch.equal(params[1], x[1]))
        raise Stop

    for _ in range(1 if backend == "triton" else 50):
        with pytest.raises(Stop):
            optimizer.step(closure)
    close(values(params), x, 1e-15 if dtype == torch.float64 else 0.01)
    assert dtype != torch.float64 or all(seen)  # y in the closure
    assert optimizer.metrics()["k"] == 4
    assert {group["y_beta"] for group in optimizer.state_dict()["param_groups"]} == {1.0}
    drive(optimizer, params, 6, skip=4)
    drive(twin, twins, 6, skip=4)
    close(values(params), values(twins), 1e-13 if dtype == torch.float64 else 0.01)


@pytest.mark.parametrize("name", CLOSURE)
def test_bad_calls_leave_x(backend: str, name: str) -> None:
    optimizer, params = make(name, backend)
    with pytest.raises(ValueError, match=r"step\(\) got no closure; expected one that"):
        optimizer.step()
    drive(optimizer, params, 2)
    x = values(params)

    def sparse() -> None:
        ones_for(params)
        params[0].grad = torch.ones(7, dtype=torch.float64).to_sparse().to(params[0].device)

    with pytest.raises(TypeError, match="gradient of parameter 0 is sparse"):
        optimizer.step(sparse)
    close(values(params), x)

    def bad_lr() -> None:
        ones_for(params)
        optimizer.param_groups[0]["lr"] = -1.0

    with pytest.raises(ValueError, match="lr is -1"):
        optimizer.step(bad_lr)
    close(values(params), x)
    optimizer.param_groups[0]["lr"] = 0.1
    drive(optimizer, params, 3, skip=2)
    assert optimizer.metrics()["k"] == 3
    assert not torch.equal(params[1].detach(), x[1])


@pytest.mark.parametrize("name", CLOSURE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_a_closure_sees(name: str, dtype: torch.dtype) -> None:
    """y in the parameters; x in iterates() and averaged_state_dict(); modes do nothing."""
    optimizer, params = make(name, dtype=dtype)
    model = nn.ParameterList(params)
    drive(optimizer, params, 6)
    at_rest = [optimizer.iterates(p) for p in params]
    close(values(params), [it.x.to(dtype) for it in at_rest], 1e-14)
    looked = []

    def closure() -> None:
        close(
            values(params),
            [it.y.to(dtype) for it in at_rest],
            0.01 if dtype != torch.float64 else 1e-14,
        )
        for p, it in zip(params, at_rest, strict=True):
            close(list(optimizer.iterates(p)), list(it), 1e-6 if dtype != torch.float64 else 1e-14)
        shipped = list(optimizer.averaged_state_dict(model).values())
        close(
            shipped, [it.x.to(dtype) for it in at_rest], 0.01 if dtype != torch.float64 else 1e-14
        )
        optimizer.eval()
        optimizer.train()
        looked.append(everything_of(optimizer, params))
        ones_for(params)

    optimizer.step(closure)
    assert len(looked) == 1
    with optimizer.averaged():
        close(values(params), [optimizer.iterates(p).x.to(dtype) for p in params])

    # a state saved in the middle of a step goes on as well
    other, others = make(name, dtype=dtype)
    with torch.no_grad():
        for p, value in zip(others, looked[0][1], strict=True):
            p.copy_(value)
    other.load_state_dict(looked[0][0])
    other.step(functools.partial(ones_for, others))
    assert_same_bits(values(others), values(params))


@pytest.mark.parametrize("name", CLOSURE)
def test_beta_changed_during_training(name: str) -> None:
    """The next closure sees y of the new beta: x and z are the same whatever it is, ends included."""
    optimizer, params = make(name)
    drive(optimizer, params, 6)
    x, _, z = optimizer.iterates(params[1])
    for beta in (0.3, 1.0, 0.0):
        group = optimizer.param_groups[0]
        group.update({"momentum": beta} if "sgd" in name else {"betas": (beta, 0.9)})
        seen = []

        def closure(seen: list = seen) -> None:
            seen.extend(values(params))
            raise Stop

        with pytest.raises(Stop):
            optimizer.step(closure)
        close([seen[1]], [x + (1 - beta) * (z - x)])
        close([params[1].detach()], [x])


@pytest.mark.parametrize(("backend", "name"), BACKEND_NAMES)
def test_skipped_step_leaves_x(backend: str, name: str) -> None:
    optimizer, params = make(name, backend, skip_nonfinite=True)
    twin, twins = make(name, backend)
    for k, (_, gradients) in enumerate(stream(SHAPES, 5)):
        if k in (0, 3):
            x = values(params)

            def bad() -> None:
                ones_for(params)
                params[1].grad[-1, -1] = float("nan")

            optimizer.step(bad)
            close(values(params), x)
        for o, its in ((optimizer, params), (twin, twins)):
            o.step(functools.partial(set_gradients, its, gradients))
    close(values(params), values(twins))
    figures = optimizer.metrics()
    assert (figures["k"], figures["skipped_steps"]) == (5, 2)


@pytest.mark.parametrize("name", CLOSURE)
def test_late_first_gradient(name: str) -> None:
    optimizer, params = make(name)
    start = values(params)

    def closure(present: int) -> None:
        ones_for(params)
        for p in params[present:]:
            p.grad = None

    for present in (1, 1, 2, 3, 4):
        optimizer.step(functools.partial(closure, present))
    assert [float(optimizer.state[p]["step"]) for p in params[:3]] == [5, 3, 2]
    for p, old in zip(params[:2], start, strict=False):
        z = optimizer.iterates(p).z
        assert 0 < float((z - old).abs().max()) < 1
        assert bool(p.isfinite().all())


@pytest.mark.parametrize("kind", ["transposed", "misaligned", "strided", "channels_last"])
def test_layouts_in_memory(backend: str, kind: str) -> None:
    """Raising in every other closure, so that all tensors go there and back too."""
    value = awkward(kind).to(device_of(backend))
    params = [nn.Parameter(value), nn.Parameter(torch.ones(3, device=value.device))]
    twins = [nn.Parameter(p.detach().clone().contiguous()) for p in params]
    runs = [(SGDScheduleFreeClosure(its, 0.1, backend=backend), its) for its in (params, twins)]
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], 5)):
        for optimizer, its in runs:

            def closure(its: list = its, k: int = k, gradients: list = gradients) -> None:
                set_gradients(its, gradients)
                if k % 2:
                    raise Stop

            with contextlib.suppress(Stop):
                optimizer.step(closure)
    assert params[0].stride() == value.stride()
    assert not torch.equal(params[1].detach(), torch.ones_like(params[1]))
    assert_same_bits(values(params), values(twins))


@pytest.mark.parametrize("name", CLOSURE)
def test_model_converted_between_steps(name: str) -> None:
    """Refused before the closure runs, and nothing moves."""
    optimizer, params = make(name, dtype=torch.float32)
    drive(optimizer, params, 2)
    for p in params:
        p.grad = None
        p.data = p.data.to(torch.float64)
    x = values(params)
    with pytest.raises(RuntimeError, match=r"make a new optimizer after model\.to\(dtype\)"):
        optimizer.step(functools.partial(ones_for, params))
    assert_same_bits(values(params), x)


def test_upstreams_order_of_the_sgd_arguments() -> None:
    (group,) = SGDScheduleFreeClosure(make_params([(3,)]), 0.5, 0.25, 0.75).param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0.25, 0.75)
