"""Our classes beside those of the schedulefree package, for the tests of its states."""

from typing import Any, NamedTuple

import schedulefree
import torch
from support import make_params

import sfplus_kernels

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


def set_mode(optimizer: Any, mode: str) -> None:
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


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
