"""State in 16 and in 8 bits: what is kept, in how many bytes, and what is refused."""

from typing import Any

import pytest
import torch
from format_runs import BYTES_OF_8, DTYPES, FORMATS, make, steps
from support import BACKENDS, assert_same_bits, bits, everything_of, make_params, set_gradients
from support.family import FAMILY, drive, groups_of

import sfplus_kernels as ours
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree


@pytest.mark.parametrize("small", FORMATS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("name", FAMILY)
def test_every_class_runs(name: str, dtype: torch.dtype, small: str) -> None:
    """Close to what it does with float32 state, with half of the bytes, or less."""
    if small == "8bit" and "closure" in name and dtype == torch.bfloat16:
        pytest.skip("refused, which test_what_is_refused sees")
    found = []
    for state_format in ("float32", small):
        params = make_params([(64, 64), (300,)], dtype)
        arguments = {**FAMILY[name].everything, "state_format": state_format}
        optimizer = FAMILY[name].ours(groups_of(params, name), **arguments)
        drive(optimizer, params, 12, missing=0.2)
        optimizer.eval()
        kept = [{k: v.nbytes for k, v in optimizer.state[p].items() if v.dim()} for p in params]
        optimizer.train()
        found.append((torch.cat([optimizer.iterates(p).x.flatten() for p in params]), kept))
    (x, full), (x_small, kept) = found
    assert ((x - x_small).abs().mean() < 0.02 * x.abs().mean()) == (x.abs().mean() > 0)
    assert torch.equal(x, x_small) == (dtype == torch.float16)
    if dtype == torch.float16:
        assert kept == full
        return
    matrix, vector = (sum(n for k, n in one.items() if k != "y_high") for one in kept)
    assert vector == sum(full[1].values()) / 2
    if small == "16bit" or (dtype == torch.float32 and "exp_avg_sq" not in full[0]):
        assert matrix == sum(full[0].values()) / 2
    else:
        assert matrix == 4096 * sum(BYTES_OF_8[k] for k in full[0])
    parks = dtype == torch.bfloat16 and "closure" not in name
    assert [one.get("y_high", 0) for one in kept] == ([8192, 600] if parks else [0, 0])


def state_of(optimizer: Any, params: list) -> list[torch.Tensor]:
    return [v for p in params for v in optimizer.state[p].values() if v.dim()]


@pytest.mark.parametrize(
    ("state_format", "dtype", "expected"),
    [
        ("16bit", torch.bfloat16, 8),
        ("16bit", torch.float32, 6),
        ("8bit", torch.bfloat16, 5.03),
        ("8bit", torch.float32, 4.03),
    ],
)
def test_bytes_of_a_transformer_block(
    state_format: str, dtype: torch.dtype, expected: float
) -> None:
    block = torch.nn.TransformerEncoderLayer(64, 4, 256, dtype=dtype)
    params = [p for p in block.parameters() if state_format == "16bit" or p.dim() > 1]
    optimizer = AdamCScheduleFreePlus(params, state_format=state_format)
    steps(optimizer, params, 6)
    numel = sum(p.numel() for p in params)
    kept = sum(v.nbytes for v in state_of(optimizer, params)) / numel
    assert kept == pytest.approx(expected, abs=0.0013)
    assert max(v.dtype.itemsize for v in state_of(optimizer, params)) == 2


@pytest.mark.parametrize("state_format", FORMATS)
def test_a_step_allocates_nothing_that_grows(state_format: str) -> None:
    allocated = {}
    for backend in ("cpu", "eager"):
        optimizer, params = make(torch.bfloat16, backend, state_format)
        steps(optimizer, params, 2)
        set_gradients(params, [torch.ones(p.shape) for p in params])
        kinds = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
            optimizer.step(loss=1.0)
        allocated[backend] = max(e.self_cpu_memory_usage for e in profile.events())
    assert allocated["cpu"] < 4096 < 4 * 4096 <= allocated["eager"]


def test_formats_of_groups() -> None:
    params = make_params([(5,), (6,), (7,)], torch.float32)
    groups = [{"params": params[:2]}, {"params": params[2:], "state_format": "16bit"}]
    optimizer = AdamWScheduleFree(groups)
    steps(optimizer, params, 2)
    kept = [optimizer.state[p]["displacement"].dtype for p in params]
    assert kept == [torch.float32, torch.float32, torch.float16]


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_step_changes_nothing(backend: str, state_format: str) -> None:
    optimizer, params = make(torch.bfloat16, backend, state_format)
    steps(optimizer, params, 3)
    before = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    for p in params:
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step(loss=1.0)
    after = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    assert all(map(torch.equal, after, before))
    assert optimizer.metrics()["skipped_steps"] == 1


def refused(message: str, cls: Any, *arguments: Any, **named: Any) -> None:
    with pytest.raises(ValueError, match=message):
        cls(*arguments, **named)


def test_what_is_refused() -> None:
    params = make_params([(5,)], torch.float32)
    refused(
        "'4bit'; expected 'float32', '16bit' or '8bit'",
        AdamWScheduleFree,
        params,
        state_format="4bit",
    )
    double = make_params([(5,)])
    refused("is float64; expected 'float32'", AdamWScheduleFree, double, state_format="16bit")
    for seed in (-1, 2**32, 0.5, True):
        refused("rounding_seed is", AdamWScheduleFree, params, rounding_seed=seed)
    base = torch.optim.SGD(params, lr=0.1)
    for state_format in FORMATS:
        refused("16 bits cannot hold", ours.ScheduleFreeWrapper, base, state_format=state_format)
    low = make_params([(5,)], torch.bfloat16)
    for closure_form in (
        ours.AdamWScheduleFreeClosure,
        ours.SGDScheduleFreeClosure,
        ours.RAdamScheduleFreeClosure,
    ):
        refused("24 bits twice a step", closure_form, low, state_format="8bit")
    m_and_v: dict[str, Any] = {"inner_momentum": 0.98, "betas": (0.9, 0.95), "state_format": "8bit"}
    refused(r"\(0.98, 0.95\); expected that of m, squared", AdamWScheduleFree, params, **m_and_v)
    AdamWScheduleFree(params, **{**m_and_v, "inner_momentum": 0})
    groups = [
        {"params": params[:1]},
        {"params": make_params([(6,)], torch.float32), "rounding_seed": 1},
    ]
    refused("rounding_seed", AdamWScheduleFree, groups)


@pytest.mark.parametrize(
    ("state_format", "other"),
    [("16bit", "float32"), ("8bit", "float32"), ("8bit", "16bit"), ("16bit", "8bit")],
)
def test_a_format_that_is_changed_in_mid_run_is_refused(state_format: str, other: str) -> None:
    optimizer, params = make(torch.float32, state_format=state_format)
    steps(optimizer, params, 3)
    before = everything_of(optimizer, params)
    optimizer.param_groups[0]["state_format"] = other
    set_gradients(params, [torch.ones(p.shape) for p in params])
    with pytest.raises(RuntimeError, match=f"state_format is '{other}', but its state is"):
        optimizer.step(loss=1.0)
    optimizer.param_groups[0]["state_format"] = state_format
    assert_same_bits(everything_of(optimizer, params), before)
