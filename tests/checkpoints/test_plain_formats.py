"""State in 16 and 8 bits of the optimizers that average nothing: kept, saved, brought into another format."""

import copy
from typing import Any

import pytest
import torch
from format_runs import BYTES_OF_8, DTYPES, FORMATS, compare_codes, load
from support import (
    BACKENDS,
    assert_same_bits,
    bits,
    device_of,
    everything_of,
    make_params,
    steps_for,
    through_a_file,
)
from support.plain import PLAIN, go_on, plain_groups

from sfplus_kernels import SGD, AdamW
from sfplus_kernels.contract.formats import whole
from sfplus_kernels.state.moments import moments_of

SHAPES = [(0,), (7,), (33, 5), (), (64, 3), (64, 2, 32), (0, 64)]


def or_slow(values: list[Any], always: list[Any]) -> list[Any]:
    """All of them, those that are like the others among the slow tests."""
    return [v if v in always else pytest.param(v, marks=pytest.mark.slow) for v in values]


def make(
    name: str,
    dtype: torch.dtype,
    state_format: str,
    shapes: list[tuple[int, ...]] = SHAPES,
    **more: Any,
) -> tuple[Any, list]:
    params = make_params(shapes, dtype, device_of(more.get("backend", "cpu")))
    arguments = {**PLAIN[name].everything, "state_format": state_format, **more}
    return PLAIN[name].ours(plain_groups(params, name), **arguments), params


def y_of(optimizer: Any, p: torch.Tensor) -> torch.Tensor:
    """All that is known of a weight."""
    state, value = optimizer.state[p], p.detach()
    if "master_param" in state:
        return state["master_param"]
    low = state.get("y_low", state.get("y_low_byte"))
    return value.float() if low is None else whole(value, low)


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("dtype", or_slow([*DTYPES, torch.float16], DTYPES))
@pytest.mark.parametrize("name", or_slow(list(PLAIN), ["adamw", "sgd"]))
@pytest.mark.parametrize("backend", or_slow(BACKENDS, ["cpu"]))
def test_every_class_runs(backend: str, name: str, dtype: torch.dtype, state_format: str) -> None:
    """Close to what it does with float32 state, with half of the bytes, or less."""
    if backend == "triton" and (name == "adamc" or dtype == torch.float16):
        pytest.skip("as the others, and slow in the interpreter")
    found = []
    for one in ("float32", state_format):
        optimizer, params = make(name, dtype, one, [(64, 64), (300,)], backend=backend)
        go_on(optimizer, params, steps_for(backend, 12))
        kept = [{k: v.nbytes for k, v in optimizer.state[p].items() if v.dim()} for p in params]
        found.append((torch.cat([y_of(optimizer, p).flatten().cpu() for p in params]), kept))
        formats = optimizer.state_formats()
    (y, full), (small, kept) = found
    assert (y - small).abs().mean() < 0.02 * y.abs().mean()
    if dtype == torch.float16 or not full[0]:
        assert torch.equal(y, small)
        assert kept == full
        return
    assert not torch.equal(y, small) or name == "sgd, no momentum"
    matrix, vector = (sum(one.values()) for one in kept)
    assert vector == sum(full[1].values()) / 2
    if state_format == "8bit" and name.startswith("adam"):
        assert matrix == 4096 * sum(BYTES_OF_8[k] for k in full[0])
        assert formats == {"8bit": 4096, "16bit": 300}
    else:
        assert matrix == sum(full[0].values()) / 2
        assert formats == {"16bit": 4396}


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", or_slow(["adamw", "adamc", "sgd"], ["adamw", "sgd"]))
def test_a_resumed_run_and_a_copy_are_the_uninterrupted_one(
    name: str, dtype: torch.dtype, state_format: str
) -> None:
    optimizer, params = make(name, dtype, state_format)
    go_on(optimizer, params, 4)
    saved = through_a_file(everything_of(optimizer, params))
    copied, copies = copy.deepcopy((optimizer, params))
    go_on(optimizer, params, 8, skip=4)
    go_on(copied, copies, 8, skip=4)
    assert_same_bits(everything_of(copied, copies), everything_of(optimizer, params))
    for model_first in (True, False):
        other, others = make(name, dtype, state_format)
        load(other, others, saved, model_first=model_first)
        go_on(other, others, 8, skip=4)
        assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", or_slow(["adamw", "sgd", "sgd, no momentum"], ["adamw"]))
def test_any_format_loads_into_any_other(name: str, dtype: torch.dtype, state_format: str) -> None:
    optimizer, params = make(name, dtype, "float32")
    go_on(optimizer, params, 6)
    saved = through_a_file(everything_of(optimizer, params))
    for model_first in (True, False):
        other, others = make(name, dtype, state_format)
        load(other, others, saved, model_first=model_first)
        other.state_dict()  # it is brought into its form at the first use
        for p, q in zip(params, others, strict=True):
            if not optimizer.state[p]:
                continue
            kept, state = optimizer.state[p], other.state[q]
            in_8_bits = state_format == "8bit" and p.numel() >= 4096 and name == "adamw"
            in_24_bits = in_8_bits and dtype == torch.bfloat16
            exact = y_of(optimizer, p)
            assert torch.allclose(y_of(other, q), exact, rtol=2.0**-16 if in_24_bits else 0)
            if in_8_bits:
                compare_codes(kept, state)
            else:
                for moment in {"exp_avg", "exp_avg_sq", "momentum_buffer"} & kept.keys():
                    assert torch.equal(state[moment], kept[moment].bfloat16())
        # and back, which loses nothing more
        back, backs = make(name, dtype, "float32")
        load(back, backs, through_a_file(everything_of(other, others)), model_first=model_first)
        back.state_dict()
        for q, r in zip(others, backs, strict=True):
            if other.state[q]:
                assert {v.dtype.itemsize for v in back.state[r].values() if v.dim()} <= {4}
                assert_same_bits([y_of(back, r)], [y_of(other, q)])
                assert_same_bits(moments_of(back.state[r]), in_float32(other.state[q]))
        again, agains = make(name, dtype, state_format)
        load(again, agains, through_a_file(everything_of(back, backs)))
        go_on(again, agains, 9, skip=6)
        go_on(other, others, 9, skip=6)
        assert_same_bits([p.detach() for p in agains], [p.detach() for p in others])


def in_float32(state: Any) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in moments_of(state).items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_state_dict_in_another_format(name: str, dtype: torch.dtype) -> None:
    """Beside parameters that stay as they are; in float32 it has all that there is."""
    optimizer, params = make(name, dtype, "8bit")
    go_on(optimizer, params, 5)
    before = everything_of(optimizer, params)
    saved = through_a_file((optimizer.state_dict_in("float32"), before[1]))
    assert_same_bits(everything_of(optimizer, params), before)
    assert {g["state_format"] for g in saved[0]["param_groups"]} == {"float32"}
    other, others = make(name, dtype, "8bit")
    load(other, others, saved)
    go_on(other, others, 8, skip=5)
    go_on(optimizer, params, 8, skip=5)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))
    with pytest.raises(ValueError, match="'4bit'; expected 'float32', '16bit' or '8bit'"):
        optimizer.state_dict_in("4bit")


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", or_slow(["adamw", "sgd", "sgd, no momentum"], ["adamw"]))
def test_torch_and_back(name: str, dtype: torch.dtype, state_format: str) -> None:
    """torch's class gets the moments as numbers, and goes on; its state is taken into any format."""
    optimizer, params = make(name, dtype, state_format)
    go_on(optimizer, params, 6)
    kept = {i: in_float32(optimizer.state[p]) for i, p in enumerate(params) if optimizer.state[p]}
    saved = through_a_file(optimizer.to_upstream_state_dict())
    for number, moments in kept.items():
        of_it = saved["state"].get(number, {})  # there is none where nothing is kept
        found = {k: v for k, v in of_it.items() if k != "step"}
        assert_same_bits(found, moments)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    theirs = PLAIN[name].torchs(plain_groups(others, name))
    theirs.load_state_dict(saved)
    go_on(theirs, others, 8, skip=6)
    back, backs = make(name, dtype, state_format)
    load(back, backs, (theirs.state_dict(), [p.detach() for p in others]))
    go_on(back, backs, 9, skip=8)
    go_on(optimizer, params, 9, skip=6)
    found, expected = back.state_formats(), optimizer.state_formats()
    assert found.keys() == expected.keys()
    # without moments torch does not know what has begun, and it begins at its next gradient
    if any(kept.values()):
        assert found == expected
    for p, q in zip(params, backs, strict=True):
        assert torch.allclose(p.detach().float(), q.detach().float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_a_skipped_step_changes_nothing(backend: str, state_format: str) -> None:
    optimizer, params = make(
        "adamw", torch.bfloat16, state_format, backend=backend, skip_nonfinite=True
    )
    go_on(optimizer, params, 3)
    before = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    for p in params:
        p.grad = torch.full_like(p, float("nan")) if optimizer.state[p] else None
    optimizer.step()
    after = [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    assert all(map(torch.equal, after, before))
    assert optimizer.metrics()["skipped_steps"] == 1


def test_what_is_written_into_a_parameter_wins() -> None:
    for state_format, numel in (("16bit", 9), ("8bit", 4096)):
        optimizer, params = make("adamw", torch.bfloat16, state_format)
        go_on(optimizer, params, 5)
        p = params[-2]
        with torch.no_grad():
            p.view(-1)[:numel:2] = 0.75
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.0
        p.grad = torch.ones_like(p)
        optimizer.step()
        # what lies beside it stays: to half a place of bfloat16
        held = y_of(optimizer, p).view(-1)[:numel:2]
        assert torch.allclose(held, torch.full_like(held, 0.75), rtol=2**-8)


def test_formats_of_groups_and_what_is_refused() -> None:
    params = make_params([(5,), (6,), (64, 64)], torch.float32)
    groups = [{"params": params[:1]}, {"params": params[1:], "state_format": "8bit"}]
    optimizer = AdamW(groups)
    go_on(optimizer, params, 2)
    assert optimizer.state_formats() == {"float32": 5, "16bit": 6, "8bit": 4096}
    with pytest.raises(ValueError, match=r"betas of m and v are \(0.99, 0.9\); expected that of m"):
        AdamW(params, betas=(0.99, 0.9), state_format="8bit")
    AdamW(params, betas=(0.99, 0.9), state_format="16bit")
    for make_it in (AdamW, SGD):
        with pytest.raises(ValueError, match="is float64; expected 'float32'"):
            make_it(make_params([(5,)]), state_format="16bit")
    with pytest.raises(ValueError, match="rounding_seed is -1"):
        AdamW(params, rounding_seed=-1)
    optimizer.param_groups[1]["state_format"] = "16bit"
    before = everything_of(optimizer, params)
    with pytest.raises(RuntimeError, match="state_format is '16bit', but its state is"):
        optimizer.step()
    optimizer.param_groups[1]["state_format"] = "8bit"
    assert_same_bits(everything_of(optimizer, params)[0]["state"], before[0]["state"])


def test_each_seed_rounds_otherwise() -> None:
    runs = []
    for seed in (0, 0, 1):
        params = make_params([(64, 64)], torch.float32)
        optimizer = AdamW(params, state_format="8bit", rounding_seed=seed)
        go_on(optimizer, params, 3)
        runs.append(optimizer.state[params[0]]["exp_avg_sq_codes"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
