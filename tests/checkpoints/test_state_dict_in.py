"""``state_dict_in``: the state in another format, beside the parameters as they are."""

import copy
from typing import Any

import pytest
import torch
from support import assert_same_bits, everything_of, make_params, run
from torch import Tensor

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFreeClosure
from sfplus_kernels.contract.formats import STATE_FORMATS

SHAPES = [(0,), (7,), (33, 5), (64, 2, 32)]
DTYPES = [torch.float32, torch.bfloat16]
SMALL = ["16bit", "8bit"]


def make(dtype: torch.dtype, state_format: str) -> tuple[Any, list]:
    params = make_params(SHAPES, dtype)
    return AdamCScheduleFreePlus(params, lr=0.3, backend="cpu", state_format=state_format), params


def trained(dtype: torch.dtype, state_format: str, mode: str = "train") -> tuple[Any, list]:
    optimizer, params = make(dtype, state_format)
    run(optimizer, params, 5)
    getattr(optimizer, mode)()
    return optimizer, params


def with_halfway_numbers(optimizer: Any, params: list, state_format: str) -> None:
    """y halfway between two bfloat16 numbers, which the formats round in different ways."""
    for p in params:
        state, bits = optimizer.state[p], p.detach().view(torch.int16)
        if "master_param" in state:
            y = (bits.to(torch.int32) << 16) + 0x8000
            state["master_param"].copy_(y.view(torch.float32))
            p.detach().copy_(state["master_param"])
        elif "y_low" in state:
            state["y_low"].view(torch.int16).fill_(-0x8000)
        else:
            state["y_low_byte"].fill_(-0x80)


def loaded(
    saved: Any, params: list, dtype: torch.dtype, state_format: str
) -> tuple[Any, list[Tensor]]:
    """With the parameters that there were beside it."""
    other, others = make(dtype, state_format)
    with torch.no_grad():
        for q, p in zip(others, params, strict=True):
            q.copy_(p)
    other.load_state_dict(saved)
    return other, others


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("into", STATE_FORMATS)
@pytest.mark.parametrize("state_format", STATE_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_state_beside_the_same_parameters(
    dtype: torch.dtype, state_format: str, into: str, halfway: bool
) -> None:
    optimizer, params = trained(dtype, state_format)
    if halfway and dtype == torch.bfloat16:
        with_halfway_numbers(optimizer, params, state_format)
    before = everything_of(optimizer, params)
    saved = optimizer.state_dict_in(into)
    assert_same_bits((optimizer.state_dict(), [p.detach() for p in params]), before)
    other, others = loaded(saved, params, dtype, into)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        now, then = other.iterates(q), optimizer.iterates(p)
        in_8_bits = other.state[q].keys() & {"y_low_byte"}
        # a last place of what is kept of y: half of one to the nearest, and a whole one where it is halfway
        place = 2.0**-14 if in_8_bits else 2.0**-22
        assert torch.allclose(now.y, then.y, rtol=place, atol=1e-30)
        e = [o.state[x]["displacement"].float() for o, x in ((other, q), (optimizer, p))]
        assert torch.allclose(*e, rtol=2**-11, atol=2**-24)
        # and nothing is converted on the way in
        number = next(i for i, x in enumerate(others) if x is q)
        assert_same_bits(dict(other.state[q]), dict(saved["state"][number]))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("state_format", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_holds_all_of_any_format(dtype: torch.dtype, state_format: str, mode: str) -> None:
    optimizer, params = trained(dtype, state_format, mode)
    other, others = loaded(optimizer.state_dict_in("float32"), params, dtype, "float32")
    back, backs = loaded(other.state_dict_in(state_format), others, dtype, state_format)
    for p, q, r in zip(params, others, backs, strict=True):
        places = torch.finfo(torch.float32).eps if dtype == torch.bfloat16 else 0.0
        for now, then in zip(other.iterates(q), optimizer.iterates(p), strict=True):
            assert torch.allclose(now, then, rtol=places, atol=0)
        if dtype == torch.float32:
            assert_same_bits(dict(back.state[r]), dict(optimizer.state[p]))
    assert other.param_groups[0]["train_mode"] == (mode == "train")


def test_its_memory_is_its_own() -> None:
    optimizer, _ = trained(torch.bfloat16, "8bit")
    before = copy.deepcopy(optimizer.state_dict())
    for state_format in STATE_FORMATS:
        for state in optimizer.state_dict_in(state_format)["state"].values():
            for value in state.values():
                value.fill_(3)
    assert_same_bits(optimizer.state_dict(), before)


def test_formats_that_it_could_not_have_are_refused() -> None:
    optimizer, _ = trained(torch.bfloat16, "16bit")
    with pytest.raises(ValueError, match="state_format is '4bit'; expected"):
        optimizer.state_dict_in("4bit")
    double = AdamWScheduleFree(make_params([(5,)]))
    with pytest.raises(ValueError, match="a parameter is float64"):
        double.state_dict_in("16bit")
    closure_form = SGDScheduleFreeClosure(make_params([(64, 64)], torch.bfloat16), lr=0.1)
    with pytest.raises(ValueError, match="24 bits twice a step"):
        closure_form.state_dict_in("8bit")
    small = make_params([(5,)], torch.float32)
    wide = AdamWScheduleFree(small, inner_momentum=0.98, betas=(0.9, 0.95))
    with pytest.raises(ValueError, match="bound in units of sqrt"):
        wide.state_dict_in("8bit")
