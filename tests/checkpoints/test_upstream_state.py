"""States of the schedulefree package, read and written: the run goes on as if nothing had happened."""

import copy
from typing import Any

import pytest
import schedulefree
import torch
from support import EVERYTHING, assert_same_bits, make_params, run, set_gradients, through_a_file
from support.family import drive
from torch import Tensor, nn
from upstream_pairs import PAIRS, REFERENCES, SHAPES, largest_difference, move, set_mode

from sfplus_kernels import AdamCScheduleFreePlus, SGDScheduleFree
from sfplus_kernels.reference import AdamCScheduleFreePlusReference


@pytest.mark.filterwarnings("ignore:.*mode")  # upstream's references print
@pytest.mark.parametrize("state_first", [False, True], ids=["params first", "state first"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", [*PAIRS, *REFERENCES])
def test_upstreams_run_goes_on_with_ours(name: str, mode: str, state_first: bool) -> None:
    ours, upstream = (PAIRS | REFERENCES)[name]
    whole, params = upstream(params := make_params(SHAPES)), params
    drive(whole, params, 60)
    set_mode(whole, "eval")
    writer = upstream(halves := make_params(SHAPES))
    drive(writer, halves, 30)
    set_mode(writer, mode)
    saved = through_a_file(writer.state_dict())
    reader, others = move(saved, halves, ours, mode, state_first, torch.float64)
    drive(reader, others, 60, skip=30)
    set_mode(reader, "eval")
    assert largest_difference(params, halves) > 1e-3  # and the second half mattered
    assert largest_difference(params, others) < 1e-10
    assert reader.state_dict()["param_groups"][0].get("k", 60) == 60


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", PAIRS)
def test_our_run_goes_on_with_upstreams(name: str, mode: str) -> None:
    ours, upstream = PAIRS[name]
    whole = ours(params := make_params(SHAPES))
    drive(whole, params, 60)
    set_mode(whole, "eval")
    writer = ours(halves := make_params(SHAPES))
    drive(writer, halves, 30)
    set_mode(writer, mode)
    before = [p.detach().clone() for p in halves]
    saved = through_a_file(writer.to_upstream_state_dict())
    assert_same_bits([p.detach() for p in halves], before)
    reader, others = move(saved, halves, upstream, mode, False, torch.float64)
    drive(reader, others, 60, skip=30)
    set_mode(reader, "eval")
    assert largest_difference(params, halves) > 1e-3
    assert largest_difference(params, others) < 1e-10


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd closure", "wrapper"])
def test_state_takes_our_dtypes_and_upstreams_again(
    name: str, dtype: torch.dtype, mode: str
) -> None:
    ours, upstream = PAIRS[name]
    writer = upstream(params := make_params(SHAPES[2:], dtype))
    drive(writer, params, 10)
    set_mode(writer, mode)
    reader = ours(params)  # the same tensors
    if name == "wrapper":
        set_mode(reader, mode)
    reader.load_state_dict(writer.state_dict())
    for p in params:
        z = writer.state[p]["z"]
        x, y, found = reader.iterates(p)
        assert found.dtype == x.dtype == y.dtype == torch.float32
        torch.testing.assert_close(found, z.float(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(x, found)
    again = reader.to_upstream_state_dict()["state"]
    for index, p in enumerate(params):
        assert again[index]["z"].dtype == dtype
        torch.testing.assert_close(again[index]["z"], writer.state[p]["z"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("use", ["state_dict", "deepcopy", "eval", "averaged", "iterates"])
def test_any_first_use_settles_the_state(use: str) -> None:
    ours, upstream = PAIRS["adamw"]
    writer = upstream(params := make_params(SHAPES))
    drive(writer, params, 10)
    saved = writer.state_dict()
    z = {p: writer.state[p]["z"].clone() for p in params}
    writer.eval()
    x = [p.detach().clone() for p in params]
    writer.train()
    optimizer = ours(params)
    optimizer.load_state_dict(saved)
    if use == "state_dict":
        assert all("displacement" in s for s in optimizer.state_dict()["state"].values())
    elif use == "deepcopy":
        optimizer = copy.deepcopy(optimizer)
        params = optimizer.param_groups[0]["params"]
        z = dict(zip(params, z.values(), strict=True))
    elif use == "eval":
        optimizer.eval()
        for p, average in zip(params, x, strict=True):
            torch.testing.assert_close(p.detach(), average, rtol=1e-12, atol=1e-12)
    elif use == "averaged":
        with optimizer.averaged():
            for p, average in zip(params, x, strict=True):
                torch.testing.assert_close(p.detach(), average, rtol=1e-12, atol=1e-12)
    for p in params:
        torch.testing.assert_close(optimizer.iterates(p).z, z[p], rtol=1e-12, atol=1e-12)


def test_parameters_without_state_start_anew() -> None:
    """Upstream's eval() leaves empty states behind, and frozen parameters have none."""
    writer = schedulefree.SGDScheduleFree(params := make_params(SHAPES))
    writer.train()
    set_gradients(params, [None, None, *(torch.ones_like(p) for p in params[2:])])
    writer.step()
    writer.eval()
    optimizer = SGDScheduleFree(params)
    optimizer.load_state_dict(writer.state_dict())
    assert [bool(optimizer.state.get(p)) for p in params] == [False, False, True, True, True]
    drive(optimizer, params, 2)
    assert all(isinstance(value, nn.Parameter) for value in params)
    assert isinstance(optimizer.state[params[0]]["displacement"], Tensor)


# -- ScheduleFree+, whose reference is in upstream's repository only ------------------------------

PLUS = {**{k: v for k, v in EVERYTHING.items() if k != "warmup_steps"}, "polyak_beta": 0.0}


def as_upstream_saves(reference: Any) -> dict[str, Any]:
    """The state dict of upstream's AdamCScheduleFreePlusPaper, from that of our reference."""
    buffers = ("x", "y", "z", "exp_avg", "exp_avg_sq")
    saved = reference.state_dict()
    state = {
        index: {name: values[name] for name in buffers} for index, values in saved["state"].items()
    }
    group = {key: PLUS[key] for key in PLUS if key != "lr"}
    own = saved["param_groups"][0]
    for key in ("lr", "betas", "eps", "sf_beta1_max", "weight_lr_power", "params"):
        group[key] = (
            own[key] if key in own else AdamCScheduleFreePlus([torch.zeros(1)]).defaults[key]
        )
    group |= {key: own[key] for key in ("k", "lr_max", "weight_sum", "scheduled_lr")}
    group |= {"train_mode": reference.train_mode, "grad_l1_ema": 1.0, "polyak_denom_ema": 0.0}
    return {"state": state, "param_groups": [group]}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_run_of_the_scheduleplus_reference_goes_on(mode: str) -> None:
    whole = AdamCScheduleFreePlusReference(params := make_params(SHAPES), **PLUS)
    run(whole, params, 40)
    writer = AdamCScheduleFreePlusReference(halves := make_params(SHAPES), **PLUS)
    run(writer, halves, 20)  # within the annealing of beta
    getattr(writer, mode)()
    reader, others = move(
        as_upstream_saves(writer),
        halves,
        lambda its: AdamCScheduleFreePlus(its, **PLUS),
        mode,
        False,
        torch.float64,
    )
    for q, p in zip(others, halves, strict=True):
        if p.numel():
            torch.testing.assert_close(reader.iterates(q).x, writer.state[p]["x"])
            torch.testing.assert_close(reader.iterates(q).y, writer.state[p]["y"])
    again = reader.to_upstream_state_dict()
    run(reader, others, 40, skip=20)
    assert largest_difference(params, others) < 1e-10
    for index, p in enumerate(halves):
        if p.numel():
            for name in ("x", "y", "z", "exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(again["state"][index][name], writer.state[p][name])
    assert {"grad_l1_ema", "polyak_denom_ema", "train_mode"} < set(again["param_groups"][0])


def test_scheduleplus_with_polyak_beta_is_refused_both_ways() -> None:
    reference = AdamCScheduleFreePlusReference(params := make_params(SHAPES), **PLUS)
    run(reference, params, 3)
    saved = as_upstream_saves(reference)
    saved["param_groups"][0]["polyak_beta"] = 0.5
    optimizer = AdamCScheduleFreePlus(params, **PLUS)
    with pytest.raises(ValueError, match="polyak_beta=0.5; expected 0"):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match="polyak_beta is 0.5; expected 0"):
        AdamCScheduleFreePlus(params, polyak_beta=0.5).to_upstream_state_dict()
