"""States of the schedulefree package, read and written: the run goes on as if nothing had happened."""

import copy
import io
import math
from typing import Any, NamedTuple

import pytest
import schedulefree
import torch
from support import EVERYTHING, assert_same_bits, make_params, run, set_gradients, stream
from torch import Tensor, nn

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

SHAPES = [(7,), (0,), (33, 5), (2, 1), (257,)]
SHARED = {"lr": 0.02, "weight_decay": 0.1, "r": 1.0}
WARMUP = {**SHARED, "warmup_steps": 25}


class Pair(NamedTuple):
    ours: Any
    upstream: Any


def pair(name: str, ours: str | None = None, **arguments: Any) -> Pair:
    return Pair(
        lambda params: getattr(sfplus_kernels, ours or name)(params, **arguments),
        lambda params: getattr(schedulefree, name)(params, foreach=False, **arguments),
    )


def wrapper(package: Any) -> Any:
    def make(params: Any) -> Any:
        base = torch.optim.SGD(params, lr=0.05, momentum=0.3)
        return package.ScheduleFreeWrapper(base, weight_decay_at_y=0.1)

    return make


PAIRS = {
    "adamw": pair("AdamWScheduleFree", **WARMUP, betas=(0.8, 0.97)),
    "paper": pair("AdamWScheduleFreePaper", **WARMUP),
    "radam": pair("RAdamScheduleFree", **SHARED),
    "sgd": pair("SGDScheduleFree", **WARMUP, momentum=0.7),
    "adamw closure": pair("AdamWScheduleFreeClosure", **WARMUP),
    "radam closure": pair("RAdamScheduleFreeClosure", **SHARED, silent_sgd_phase=False),
    "sgd closure": pair("SGDScheduleFreeClosure", **WARMUP),
    "wrapper": Pair(wrapper(sfplus_kernels), wrapper(schedulefree)),
}
REFERENCES = {  # which keep x, y and z
    "adamw reference": pair("AdamWScheduleFreeReference", "AdamWScheduleFree", **WARMUP),
    "sgd reference": pair("SGDScheduleFreeReference", "SGDScheduleFree", **WARMUP),
}


def drive(optimizer: Any, params: list, steps: int, skip: int = 0) -> None:
    set_mode(optimizer, "train")
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps)):
        if k < skip:
            continue

        def closure(gradients: Any = gradients) -> None:
            set_gradients(params, gradients)

        if "Closure" in type(optimizer).__name__:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def set_mode(optimizer: Any, mode: str) -> None:
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def move(
    saved: Any, params: list, make: Any, mode: str, state_first: bool, dtype: torch.dtype
) -> tuple[Any, list]:
    """An optimizer on other parameters, given the state and the values of the saved ones."""
    others = make_params(SHAPES, dtype, seed=5)
    optimizer = make(others)
    if "Wrapper" in type(optimizer).__name__:
        set_mode(optimizer, mode)  # upstream does not save it
    if state_first:
        optimizer.load_state_dict(saved)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    if not state_first:
        optimizer.load_state_dict(saved)
    return optimizer, others


def largest_difference(params: list, others: list) -> float:
    return max(
        float((p - q).detach().abs().max())
        for p, q in zip(params, others, strict=True)
        if p.numel()
    )


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


# -- what upstream does not have -------------------------------------------------------------------

ONLY_OURS = [
    ("AdamCScheduleFreePlus", "max_lr", 0.03, None, "upstream has no cap"),
    ("AdamCScheduleFreePlus", "f_star", 0.5, 0.0, "aims at a loss of 0"),
    ("AdamCScheduleFreePlus", "maximize", True, False, "upstream descends"),
    ("AdamCScheduleFreePlus", "max_grad_norm", 1.0, None, "upstream does not clip"),
    ("AdamWScheduleFree", "maximize", True, False, "upstream descends"),
    ("AdamWScheduleFree", "max_grad_norm", 1.0, None, "upstream does not clip"),
    ("AdamWScheduleFree", "decoupling_c", 20.0, None, "upstream has no such factor"),
    ("SGDScheduleFreeClosure", "max_grad_norm", 1.0, None, "upstream does not clip"),
    ("RAdamScheduleFree", "maximize", True, False, "upstream descends"),
]


@pytest.mark.parametrize(("name", "setting", "value", "idle", "lost"), ONLY_OURS)
def test_a_setting_that_upstream_lacks_is_not_lost_in_silence(
    name: str, setting: str, value: Any, idle: Any, lost: str
) -> None:
    optimizer = getattr(sfplus_kernels, name)(make_params(SHAPES), **{setting: value})
    with pytest.raises(ValueError, match=f"{setting} is {value}; expected {idle}: .*{lost}"):
        optimizer.to_upstream_state_dict()
    optimizer.param_groups[0][setting] = idle  # what the message says
    assert setting not in optimizer.to_upstream_state_dict()["param_groups"][0]


def test_such_a_setting_is_seen_in_any_group() -> None:
    first, second = make_params(SHAPES)[-2:]
    groups = [{"params": [first]}, {"params": [second], "max_lr": 0.03}]
    optimizer = AdamCScheduleFreePlus(groups, max_lr=math.inf)  # which caps nothing
    with pytest.raises(ValueError, match="max_lr is 0.03; expected None"):
        optimizer.to_upstream_state_dict()
    optimizer.param_groups[1]["max_lr"] = None
    assert len(optimizer.to_upstream_state_dict()["param_groups"]) == 2


def test_scheduleplus_can_go_when_its_warmup_is_over() -> None:
    optimizer = AdamCScheduleFreePlus(params := make_params(SHAPES), warmup_steps=4)
    run(optimizer, params, 2)  # the next step has 3/4 of gamma, upstream's all of it
    with pytest.raises(ValueError, match="2 of warmup_steps=4 steps are done; expected all"):
        optimizer.to_upstream_state_dict()
    run(optimizer, params, 3, skip=2)
    saved = optimizer.to_upstream_state_dict()["param_groups"][0]
    assert saved["k"] == 3
    assert "warmup_steps" not in saved


def test_skip_nonfinite_comes_along_and_is_back_with_the_run() -> None:
    ours = sfplus_kernels.AdamWScheduleFree
    writer = ours(params := make_params(SHAPES), skip_nonfinite=True)
    drive(writer, params, 3)
    upstream = schedulefree.AdamWScheduleFree(params)
    upstream.load_state_dict(writer.to_upstream_state_dict())
    drive(upstream, params, 6, skip=3)
    reader = ours(params)
    reader.load_state_dict(upstream.state_dict())
    assert reader.param_groups[0]["skip_nonfinite"] is True
    assert reader.param_groups[0]["k"] == 6


# -- what is refused -------------------------------------------------------------------------------


def states() -> dict[str, Any]:
    saved = {}
    for name, one in PAIRS.items():
        optimizer = one.upstream(params := make_params(SHAPES))
        drive(optimizer, params, 3)
        saved[name] = optimizer.state_dict()
    optimizer = torch.optim.AdamW(params := make_params(SHAPES))
    drive(optimizer, params, 3)
    return saved | {"torch": optimizer.state_dict()}


@pytest.mark.parametrize(
    ("saved", "reader", "message"),
    [
        ("sgd", "adamw", "lacks betas, eps"),
        ("adamw", "sgd", "lacks momentum"),
        ("radam", "adamw", "lacks warmup_steps"),
        ("adamw", "radam", "lacks silent_sgd_phase"),
        ("adamw", "adamw closure", "has modes"),
        ("adamw closure", "adamw", "lacks train_mode"),
        ("torch", "adamw", "lacks k, lr_max"),
        ("torch", "wrapper", "neither 'averaging' nor k, lr_max, weight_sum"),
    ],
)
def test_state_of_another_class_is_refused(saved: str, reader: str, message: str) -> None:
    optimizer = PAIRS[reader].ours(params := make_params(SHAPES))
    drive(optimizer, params, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(states()[saved])
    assert_same_bits(optimizer.state_dict(), before)


def edited(change: Any) -> Any:
    saved = copy.deepcopy(states()["adamw"])
    change(saved)
    return saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["state"][0].pop("exp_avg_sq"),
            r"keys \['z'\]; expected \['exp_avg_sq', 'z'\]",
        ),
        (lambda s: s["state"][2].update(z=torch.zeros(3)), r"z of parameter 2 has shape \(3,\)"),
        (lambda s: s["param_groups"][0].update(betas=(0.0, 0.9)), "momentum of 0.*eval mode"),
        (
            lambda s: s["param_groups"][0]["params"].pop(),
            r"groups of \[4\] parameters; expected \[5\]",
        ),
    ],
)
def test_broken_state_changes_nothing(change: Any, message: str) -> None:
    optimizer = AdamWScheduleFree(params := make_params(SHAPES))
    drive(optimizer, params, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(edited(change))
    assert_same_bits(optimizer.state_dict(), before)


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
