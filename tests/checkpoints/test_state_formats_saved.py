"""State in 16 and in 8 bits: resumed, copied, brought into another format, exported."""

import copy
import pickle
from typing import Any

import pytest
import torch
from format_runs import DTYPES, FORMATS, MODES, compare_codes, load, make, steps
from support import BACKENDS, assert_same_bits, everything_of, make_params, through_a_file

from sfplus_kernels import AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.state.moments import moments_of


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_resumed_run_is_the_uninterrupted_one(
    backend: str, dtype: torch.dtype, mode: str, state_format: str
) -> None:
    optimizer, params = make(dtype, backend, state_format)
    steps(optimizer, params, 4)
    getattr(optimizer, mode)()
    saved = through_a_file(everything_of(optimizer, params))
    steps(optimizer, params, 8, skip=4)
    for model_first in (True, False):
        other, others = make(dtype, backend, state_format, rounding_seed=5)  # the saved one counts
        load(other, others, saved, model_first=model_first)
        assert other.param_groups[0]["train_mode"] == (mode == "train")
        steps(other, others, 8, skip=4)
        assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("mode", MODES)
def test_copies_go_on_alike(mode: str, copied: Any, state_format: str) -> None:
    optimizer, params = make(torch.bfloat16, state_format=state_format)
    steps(optimizer, params, 4)
    getattr(optimizer, mode)()
    other, others = copied((optimizer, params))
    steps(optimizer, params, 7, skip=4)
    steps(other, others, 7, skip=4)
    assert_same_bits(everything_of(other, others), everything_of(optimizer, params))


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_format_loads_into_any_other(dtype: torch.dtype, mode: str, state_format: str) -> None:
    optimizer, params = make(dtype, state_format="float32")
    steps(optimizer, params, 6)
    getattr(optimizer, mode)()
    saved = through_a_file(everything_of(optimizer, params))
    for model_first in (True, False):
        other, others = make(dtype, state_format=state_format)
        load(other, others, saved, model_first=model_first)
        for p, q in zip(params, others, strict=True):
            in_8_bits = state_format == "8bit" and p.numel() >= 4096
            in_24_bits = in_8_bits and dtype == torch.bfloat16
            for left, right in zip(other.iterates(q), optimizer.iterates(p), strict=True):
                # by the rounding of e, and of y
                by = (
                    2**-11 * float(optimizer.state[p]["displacement"].abs().amax())
                    if p.numel()
                    else 0
                )
                assert torch.allclose(left, right, rtol=2**-16 if in_24_bits else 1e-6, atol=by)
            # what is held is what it was
            if dtype == torch.float32:
                assert torch.equal(q, p)
            elif not in_24_bits:
                assert torch.equal(other.iterates(q).y, optimizer.iterates(p).y)
            kept, state = optimizer.state[p], other.state[q]
            if in_8_bits:
                compare_codes(kept, state)
            for name in (
                ("displacement",) if in_8_bits else ("exp_avg", "exp_avg_sq", "displacement")
            ):
                assert torch.equal(state[name], kept[name].to(state[name].dtype))
                assert state[name].dtype.itemsize == 2
        assert other.param_groups[0]["state_format"] == state_format
        once = through_a_file(everything_of(other, others))
        # and back, which loses nothing more, there and here
        back, backs = make(dtype, state_format="float32")
        load(back, backs, once, model_first=model_first)
        for q, r in zip(others, backs, strict=True):
            assert_same_bits(list(back.iterates(r)), list(other.iterates(q)))
            assert {v.dtype.itemsize for v in back.state[r].values() if v.dim()} <= {4}
        again, agains = make(dtype, state_format=state_format)
        load(again, agains, through_a_file(everything_of(back, backs)))
        again.state_dict()
        for q, r in zip(others, agains, strict=True):
            assert_same_bits(dict(again.state[r]), dict(other.state[q]))
        steps(again, agains, 9, skip=6)
        steps(other, others, 9, skip=6)
        assert_same_bits([p.detach() for p in agains], [p.detach() for p in others])


def test_a_checkpoint_from_before_the_formats() -> None:
    optimizer, params = make(torch.bfloat16, state_format="float32")
    steps(optimizer, params, 4)
    saved = through_a_file(everything_of(optimizer, params))
    for group in saved[0]["param_groups"]:
        del group["state_format"], group["rounding_seed"]
    other, others = make(torch.bfloat16)
    load(other, others, saved)
    assert other.state_dict()["param_groups"][0]["rounding_seed"] == 0
    assert torch.equal(other.iterates(others[2]).y, optimizer.iterates(params[2]).y)


@pytest.mark.parametrize("state_format", FORMATS)
def test_state_that_a_loader_makes(state_format: str) -> None:
    """In eval mode it has what is saved there, too."""
    optimizer, params = make(torch.bfloat16, state_format=state_format)
    steps(optimizer, params, 4)
    optimizer.eval()
    saved = everything_of(optimizer, params)
    for lr in (0.0,):
        other, others = make(torch.bfloat16, state_format=state_format, lr=lr)
        other.eval()
        for p in others:
            p.grad = torch.zeros_like(p)
        other.step()
        for p, q in zip(params, others, strict=True):
            if p in optimizer.state:
                assert set(other.state[q]) == set(optimizer.state[p])
        load(other, others, saved)
        assert_same_bits(everything_of(other, others)[0]["state"], saved[0]["state"])


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_export_of_a_file(dtype: torch.dtype, mode: str, state_format: str, tmp_path: Any) -> None:
    from sfplus_kernels.checkpoints.files import read
    from sfplus_kernels.checkpoints.found import averaged

    model = torch.nn.Linear(64, 70, dtype=dtype)
    params = list(model.parameters())
    optimizer = SGDScheduleFree(params, lr=0.1, state_format=state_format)
    steps(optimizer, params, 6)
    expected = [optimizer.iterates(p).x.to(dtype) for p in params]
    getattr(optimizer, mode)()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "checkpoint.pt")
    weights = averaged(read(tmp_path / "checkpoint.pt"))
    for name, x in zip(("weight", "bias"), expected, strict=True):
        assert torch.equal(weights[name], x)


@pytest.mark.parametrize("state_format", FORMATS)
def test_upstreams_state(state_format: str) -> None:
    optimizer, params = make_given(torch.bfloat16, state_format)
    steps(optimizer, params, 5)
    saved = optimizer.to_upstream_state_dict()
    z = saved["state"][0]["z"]
    assert torch.equal(z, optimizer.iterates(params[0]).z.to(z.dtype))
    v = moments_of(optimizer.state[params[0]])["exp_avg_sq"]
    assert torch.equal(saved["state"][0]["exp_avg_sq"], v.to(torch.bfloat16))
    other, others = make_given(torch.bfloat16, state_format)
    load(other, others, (saved, [p.detach() for p in params]))
    steps(other, others, 6, skip=5)
    assert other.state[others[1]]["displacement"].dtype == torch.float16


def make_given(dtype: torch.dtype, state_format: str) -> tuple[Any, list]:
    params = make_params([(64, 96), (300,)], dtype)
    return AdamWScheduleFree(params, lr=0.01, state_format=state_format), params


def test_state_of_the_other_mode_is_refused() -> None:
    optimizer, params = make(torch.bfloat16)
    steps(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["train_mode"] = False
    with pytest.raises(ValueError, match="y_high"):
        optimizer.load_state_dict(saved)
