"""SGD's momentum that is dampened, begins late, rests and goes on: as torch.optim.SGD has it."""

import copy
import math
from typing import Any

import cuda_on_host
import pytest
import torch
from support import (
    BACKENDS,
    SHAPES,
    assert_same_bits,
    device_of,
    make_params,
    set_gradients,
    stream,
)

from sfplus_kernels import SGD
from sfplus_kernels.backends import registry
from sfplus_kernels.reference import SGDReference

ON_HOST = cuda_on_host.RECORD.name
ALL = [name for name in BACKENDS if name != "cuda"] + [ON_HOST]
OF_SCHEDULERS = [
    name if name != "triton" else pytest.param(name, marks=pytest.mark.slow) for name in BACKENDS
]
FORMATS = [
    (torch.float32, "float32"),
    (torch.bfloat16, "float32"),
    (torch.float16, "float32"),
    (torch.float32, "16bit"),
    (torch.bfloat16, "16bit"),
    (torch.bfloat16, "8bit"),
]


@pytest.fixture(autouse=True)
def _cuda_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._RECORDS, ON_HOST, cuda_on_host.RECORD)


def cycle(k: int) -> float:
    """From 0 and to 0 and back, with each of these for more than a step."""
    return (0.0, 0.0, 0.9, 0.9, 0.5, 0.0, 0.0, 0.7)[k % 8]


def two_groups(params: list) -> list[dict[str, Any]]:
    middle = len(params) // 2
    first = {"params": params[:middle], "dampening": 0.4, "maximize": True}
    second = {"params": params[middle:], "nesterov": True, "lr": 0.05}
    return [first, second]


def run(
    optimizer: Any, params: list, steps: int, skip: int = 0, missing: float = 0.3
) -> list[list[torch.Tensor]]:
    """The parameters after each step, while the momenta of the two groups take turns in their cycle."""
    seen = []
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps, missing=missing)):
        if k < skip:
            continue
        for number, group in enumerate(optimizer.param_groups):
            group["momentum"] = cycle(k + 3 * number)
        set_gradients(params, gradients)
        optimizer.step()
        seen.append([p.detach().cpu().double().clone() for p in params])
    return seen


def assert_near(found: list, expected: list, tolerance: float) -> None:
    for f, e in zip(found, expected, strict=True):
        for a, b in zip(f, e, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def make(backend: str, dtype: torch.dtype = torch.float64, **more: Any) -> tuple[SGD, list]:
    params = make_params(dtype=dtype, device=device_of(backend))
    return SGD(two_groups(params), lr=0.02, weight_decay=0.3, backend=backend, **more), params


@pytest.mark.parametrize("backend", ALL)
def test_from_zero_and_to_zero(backend: str) -> None:
    """In float64, with late gradients: torch's trajectory, and the reference's."""
    optimizer, params = make(backend)
    steps = 12 if backend == "triton" else 20
    found = run(optimizer, params, steps)
    for peer in (torch.optim.SGD, SGDReference):
        others = make_params()
        theirs = peer(two_groups(others), lr=0.02, weight_decay=0.3)
        expected = run(theirs, others, steps)
        assert_near(found, expected, 1e-12)
        for p, q in zip(params, others, strict=True):
            kept, other = (s.get("momentum_buffer") for s in (optimizer.state[p], theirs.state[q]))
            assert (kept is None) == (other is None)
            if kept is not None:
                torch.testing.assert_close(kept.cpu(), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "state_format"),
    [
        FORMATS[1],
        FORMATS[3],
        *(pytest.param(*f, marks=pytest.mark.slow) for f in (FORMATS[0], FORMATS[2], *FORMATS[4:])),
    ],
)
def test_every_format_on_every_backend(dtype: torch.dtype, state_format: str) -> None:
    """Near float64, and of one another the bits; what rests is not written."""
    exact = make_params(dtype=dtype)
    exact = [torch.nn.Parameter(p.detach().double()) for p in exact]
    expected = run(SGDReference(two_groups(exact), lr=0.02, weight_decay=0.3), exact, 12)
    bits: list[Any] = []
    for backend in ALL:
        optimizer, params = make(backend, dtype, state_format=state_format)
        found = run(optimizer, params, 12)
        near = 2e-5 if (dtype, state_format) == (torch.float32, "float32") else 0.02
        scale = max(float(e.abs().max()) for e in expected[-1] if e.numel())
        for f, e in zip(found[-1], expected[-1], strict=True):
            assert float((f - e).abs().max() if f.numel() else 0) < near * scale
        held = [v.clone() for p in params for v in (p.detach(), *optimizer.state[p].values())]
        bits.append([value.cpu() for value in held])
        before = copy.deepcopy([dict(optimizer.state[p]) for p in params])
        for group in optimizer.param_groups:
            group["momentum"] = 0.0
        optimizer.step()
        for p, old in zip(params, before, strict=True):
            if "momentum_buffer" in old:
                assert_same_bits(optimizer.state[p]["momentum_buffer"], old["momentum_buffer"])
    for other in bits[1:]:
        assert_same_bits(other, bits[0])


def test_dampening_by_hand() -> None:
    """m = 1, then 0.5 m + 0.25 g; a tensor whose gradient comes late begins with all of it."""
    first, late = (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = SGD([first, late], lr=1.0, momentum=0.5, dampening=0.75)
    for k, (m, m_late) in enumerate([(1, 0), (0.75, 0), (0.625, 1), (0.5625, 0.75)]):
        before = first.detach().clone(), late.detach().clone()
        first.grad = torch.ones_like(first)
        late.grad = torch.ones_like(late) if k > 1 else None
        optimizer.step()
        assert (before[0] - first).tolist() == [m, m]
        assert (before[1] - late).tolist() == [m_late, m_late]


@pytest.mark.parametrize("backend", ALL)
def test_a_first_step_that_is_skipped_is_none(backend: str) -> None:
    """Dampening begins after the first gradient that went in."""
    runs = []
    for spoiled in (True, False):
        params = make_params([(5,), (3, 2)], device=device_of(backend))
        optimizer = SGD(params, momentum=0.9, dampening=0.5, skip_nonfinite=True, backend=backend)
        for value in (*([math.nan] if spoiled else []), 1.0, 2.0):
            for p in params:
                p.grad = torch.full_like(p, value)
            optimizer.step()
            if math.isnan(value):  # torch's class too begins with the next
                assert optimizer.to_upstream_state_dict()["state"] == {}
        runs.append([p.detach() for p in params])
    assert_same_bits(*runs)


@pytest.mark.parametrize(("dtype", "state_format"), [(torch.float64, "float32"), *FORMATS])
@pytest.mark.parametrize("at", [1, 7])  # before it began, and while it rests
def test_saved_while_there_is_none(dtype: torch.dtype, state_format: str, at: int) -> None:
    """A checkpoint of its own goes on bit for bit, torch's class to rounding, and back from it."""
    optimizer, params = make("cpu", dtype, state_format=state_format)
    run(optimizer, params, at, missing=0)
    others = copy.deepcopy(params)
    resumed = SGD(two_groups(others), backend="cpu", state_format=state_format)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    thirds = [torch.nn.Parameter(p.detach().double().clone()) for p in params]
    theirs = torch.optim.SGD(two_groups(thirds), lr=1.0)
    theirs.load_state_dict(copy.deepcopy(optimizer.to_upstream_state_dict()))
    assert [group["dampening"] for group in theirs.param_groups] == [0.4, 0]
    fourths = copy.deepcopy(params)
    back = SGD(two_groups(fourths), backend="cpu", state_format=state_format)
    back.load_state_dict(copy.deepcopy(theirs.state_dict()))
    found = run(optimizer, params, 14, skip=at, missing=0)
    run(resumed, others, 14, skip=at, missing=0)
    assert_same_bits([p.detach() for p in params], [p.detach() for p in others])
    assert_same_bits(optimizer.state_dict()["state"], resumed.state_dict()["state"])
    near = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 0.02)
    near = 0.02 if state_format != "float32" else near
    for its, optim in ((thirds, theirs), (fourths, back)):
        assert_near(found, run(optim, its, 14, skip=at, missing=0), near)


@pytest.mark.parametrize("backend", OF_SCHEDULERS)
def test_schedulers_that_cycle_it(backend: str) -> None:
    """torch's own, down to 0 and up again."""
    runs = []
    for make_it in (SGD, torch.optim.SGD):
        more = {"backend": backend} if make_it is SGD else {}
        params = make_params(SHAPES, device=device_of(backend if more else "cpu"))
        optimizer = make_it(params, lr=0.01, momentum=0.5, dampening=0.2, **more)
        scheduler = torch.optim.lr_scheduler.CyclicLR(
            optimizer, 0.01, 0.05, step_size_up=3, base_momentum=0.0, max_momentum=0.8
        )
        seen, momenta = [], []
        for _, gradients in stream(SHAPES, 14):
            momenta.append(optimizer.param_groups[0]["momentum"])
            set_gradients(params, gradients)
            optimizer.step()
            scheduler.step()
            seen.append([p.detach().cpu() for p in params])
        assert momenta.count(0.0) == 2
        runs.append(seen[-1:])
    assert_near(*runs, 1e-12)


def test_a_broken_state_changes_nothing() -> None:
    """Where momentum would begin, and what is kept does not fit the parameter any more."""
    (param,) = make_params([(3,)], torch.float32)
    optimizer = SGD([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    param.data = param.data.bfloat16()
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="parameter 0 is now torch.bfloat16"):
        optimizer.step()
    assert set(optimizer.state[param]) == {"step"}
    assert float(optimizer.state[param]["step"]) == 1
