"""States of the schedulefree package: what it does not have, and what is refused."""

import copy
import math
from typing import Any

import pytest
import schedulefree
import torch
from support import assert_same_bits, make_params, run
from support.family import drive
from upstream_pairs import PAIRS, SHAPES

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

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
