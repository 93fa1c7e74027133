"""The Schedule-Free family: who is compared with whom, and how a run is driven and compared."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import schedulefree
import torch
from torch import Tensor

import sfplus_kernels as ours
from sfplus_kernels import reference
from support import SHAPES, make_params, set_gradients, stream


class Member(NamedTuple):
    ours: Any
    upstream: Any  # None where the schedulefree package has no class of that name
    reference: Any
    everything: dict[str, Any]
    second_group: dict[str, Any]

    def oracle(self, params: Any, *, foreach: bool = False, **arguments: Any) -> Any:
        """Upstream's class, or where there is none the reference."""
        if self.upstream is None:
            return self.reference(params, **arguments)
        return self.upstream(params, foreach=foreach, **arguments)


SHARED = {"lr": 0.02, "weight_decay": 0.1, "r": 1.0, "weight_lr_power": 1.0}
SECOND = {"lr": 0.05, "weight_decay": 0.02, "r": 2.0, "weight_lr_power": 2.0}
ADAM = {**SHARED, "warmup_steps": 10, "betas": (0.8, 0.97)}
ADAM_SECOND = {**SECOND, "warmup_steps": 4, "betas": (0.6, 0.9), "eps": 1e-3}
SGD = {**SHARED, "warmup_steps": 10, "momentum": 0.8}
SGD_SECOND = {**SECOND, "warmup_steps": 4, "momentum": 0.6}
RADAM = {**SHARED, "betas": (0.8, 0.97), "silent_sgd_phase": False}
RADAM_SECOND = {**SECOND, "betas": (0.6, 0.9), "eps": 1e-3, "silent_sgd_phase": True}


def member(name: str, plain: str, everything: dict, second_group: dict) -> Member:
    oracle = getattr(reference, f"{plain}Reference")
    return Member(
        getattr(ours, name), getattr(schedulefree, name, None), oracle, everything, second_group
    )


PLAIN = {
    "adamw": member("AdamWScheduleFree", "AdamWScheduleFree", ADAM, ADAM_SECOND),
    "sgd": member("SGDScheduleFree", "SGDScheduleFree", SGD, SGD_SECOND),
    "radam": member("RAdamScheduleFree", "RAdamScheduleFree", RADAM, RADAM_SECOND),
    "paper": member("AdamWScheduleFreePaper", "AdamWScheduleFreePaper", ADAM, ADAM_SECOND),
}
CLOSURE = {
    "adamw closure": member("AdamWScheduleFreeClosure", "AdamWScheduleFree", ADAM, ADAM_SECOND),
    "sgd closure": member("SGDScheduleFreeClosure", "SGDScheduleFree", SGD, SGD_SECOND),
    "radam closure": member("RAdamScheduleFreeClosure", "RAdamScheduleFree", RADAM, RADAM_SECOND),
}
FAMILY = {**PLAIN, **CLOSURE}
NAMESAKES = [name for name in FAMILY if FAMILY[name].upstream is not None]
"""Those that the schedulefree package has too."""


def groups_of(params: Sequence[Tensor], name: str) -> list[dict[str, Any]]:
    """The parameters in two groups that differ in every hyperparameter."""
    middle = len(params) // 2
    return [
        {"params": list(params[:middle])},
        {"params": list(params[middle:]), **FAMILY[name].second_group},
    ]


def step_with(optimizer: Any, give_gradients: Callable[[], None]) -> None:
    """One step of a plain class or of a closure form."""
    if type(optimizer).__name__.endswith("Closure"):
        optimizer.step(give_gradients)
    else:
        give_gradients()
        optimizer.step()


def set_train_mode(optimizer: Any) -> None:
    """Upstream's closure forms have no modes."""
    if hasattr(optimizer, "train"):
        optimizer.train()


def drive(
    optimizer: Any,
    params: Sequence[Tensor],
    steps: int,
    *,
    skip: int = 0,
    missing: float = 0.0,
    stretches: bool = False,
    grad_dtype: torch.dtype | None = None,
    each: Callable[[int, Any], None] | None = None,
) -> None:
    """Steps ``skip`` to ``steps`` of one stream; ``each`` is called after every step."""
    set_train_mode(optimizer)
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps, missing=missing)):
        if k < skip:
            continue
        present = [
            None if stretches and (k // 8 + i) % 3 == 0 else g for i, g in enumerate(gradients)
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", SCHEDULER)
            step_with(optimizer, functools.partial(set_gradients, params, present, grad_dtype))
        if each is not None:
            each(k, optimizer)


SCHEDULER = r"sfplus_kernels \[scheduler\]"
"""The warning at a learning rate that falls, here on purpose."""


def follow_schedule(k: int, optimizer: Any) -> None:
    if k % 4 == 0:
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = 0.03 * (1 + number) * (1 + math.cos(k / 15))


def change_modes(k: int, optimizer: Any) -> None:
    if k % 3 == 2 and hasattr(optimizer, "train"):
        optimizer.eval()
        optimizer.train()


def schedule_and_modes(k: int, optimizer: Any) -> None:
    follow_schedule(k, optimizer)
    change_modes(k, optimizer)


HOOKS = {
    "lr schedule": follow_schedule,
    "modes": change_modes,
    "all at once": schedule_and_modes,
}


def iterates_of(optimizer: Any, params: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """(x, y, z) of each parameter; of an optimizer without ``iterates``, by way of its modes."""
    if callable(getattr(optimizer, "iterates", None)):
        return [tuple(value.cpu() for value in optimizer.iterates(p)) for p in params]
    held = [p.detach().clone() for p in params]
    z = [optimizer.state.get(p, {}).get("z", p.detach()).clone() for p in params]
    if not hasattr(optimizer, "train"):  # a closure form of upstream holds x
        group = optimizer.param_groups
        betas = [g["momentum"] if "momentum" in g else g["betas"][0] for g in group]
        sizes = [len(g["params"]) for g in group]
        each = [beta for beta, size in zip(betas, sizes, strict=True) for _ in range(size)]
        y = [x + (1 - beta) * (end - x) for x, end, beta in zip(held, z, each, strict=True)]
        return list(zip(held, y, z, strict=True))
    optimizer.eval()
    x = [p.detach().clone() for p in params]
    optimizer.train()
    return list(zip(x, held, z, strict=True))


def difference(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> float:
    """The largest over all iterates, relative to the parameter's size."""
    largest = 0.0
    for left, right in zip(a, b, strict=True):
        for mine, theirs in zip(left, right, strict=True):
            if mine.numel():
                error = (mine - theirs).abs().max() / theirs.abs().max().clamp(min=1)
                largest = max(largest, float(error))
    return largest


class Outcome(NamedTuple):
    """What a run came to."""

    start: list[tuple[Tensor, ...]]
    iterates: list[tuple[Tensor, ...]]
    lr: list[float]  # scheduled_lr of every step and group
    groups: list[dict[str, Any]]


def outcome(optimizer: Any, params: list, steps: int, case: str = "", **how: Any) -> Outcome:
    """Drive ``optimizer``, with the hook of ``case`` after each step."""
    start, lr = [(p.detach().cpu().clone(),) * 3 for p in params], []

    def each(k: int, optimizer: Any) -> None:
        lr.extend(group["scheduled_lr"] for group in optimizer.param_groups)
        if case in HOOKS:
            HOOKS[case](k, optimizer)

    drive(optimizer, params, steps, each=each, stretches=case == "stretches", **how)
    groups = optimizer.state_dict()["param_groups"]
    return Outcome(start, iterates_of(optimizer, params), lr, groups)


@functools.cache
def oracle_outcome(name: str, case: str, steps: int) -> Outcome:
    """The oracle's run of a case, made once for all that are compared with it."""
    params, groups, arguments = case_of(name, case)
    optimizer = FAMILY[name].oracle(groups, **arguments)
    return outcome(optimizer, params, steps, case)


def assert_agree(found: Outcome, expected: Outcome, steps: int) -> None:
    """Iterates, step sizes of every step, and run state agree."""
    assert difference(expected.iterates, expected.start) > 1e-3  # both stood still proves nothing
    assert difference(found.iterates, expected.iterates) < 1e-10
    assert all(type(value) is float for value in found.lr)
    assert found.lr == pytest.approx(expected.lr, rel=1e-12)
    for group, other in zip(found.groups, expected.groups, strict=True):
        assert group["k"] == steps
        for key in ("k", "lr_max", "weight_sum", "scheduled_lr"):
            assert group[key] == pytest.approx(other[key], rel=1e-10), key


ALONE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "weight decay": {"weight_decay": 0.1, "lr": 0.02},
    "warmup": {"warmup_steps": 20},
    "r": {"r": 2.0},
    "power 0": {"weight_lr_power": 0.0},
    "power 1 under warmup": {"weight_lr_power": 1.0, "warmup_steps": 15},
    "betas": {"betas": (0.6, 0.95)},
    "eps": {"eps": 0.01, "lr": 0.1},
    "momentum": {"momentum": 0.6},
    "sgd phase": {"silent_sgd_phase": False, "lr": 0.01},
}
ALONE_SHAPES = [(7,), (), (33, 5)]
GROUPED = ["groups", "lr schedule", "modes", "all at once", "stretches"]  # and everything at once


def takes(name: str, arguments: dict[str, Any]) -> bool:
    """Whether a member has these arguments."""
    known = {"lr", *FAMILY[name].everything, *FAMILY[name].second_group}
    return set(arguments) <= known


CASES = [
    *((name, case) for name in PLAIN for case in ALONE if takes(name, ALONE[case])),
    *((name, case) for name in CLOSURE for case in ("defaults", "sgd phase")),
    *((name, case) for name in PLAIN for case in GROUPED[:3]),
    *((name, "lr schedule") for name in CLOSURE),
    ("sgd", "stretches"),  # the other Adam classes count steps otherwise than upstream
    ("paper", "stretches"),
]
CASES = [case for case in CASES if case[1] in GROUPED or takes(case[0], ALONE[case[1]])]


def case_of(name: str, case: str, device: Any = "cpu") -> tuple[list, list, dict[str, Any]]:
    """Parameters, what to give to the optimizer, and its arguments."""
    if case in GROUPED:
        params = make_params(SHAPES, device=device)
        return params, groups_of(params, name), FAMILY[name].everything
    params = make_params(ALONE_SHAPES, device=device)
    return params, params, ALONE[case]
