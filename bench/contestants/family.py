"""The optimizers of this package, beside their reference classes and their namesakes upstream.

``FAMILY`` has one line per class: adding a class is adding a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import sfplus_kernels
from bench.contestants.contestant import OTHERS, Contestant, Make, Step, driver, imported, missing
from sfplus_kernels import backends, reference


@dataclass(frozen=True)
class Family:
    """One class of this package."""

    label: str
    class_name: str
    arguments: dict[str, Any]
    step: str = "plain"  # or "loss": step(loss=...), or "closure": step(closure)
    upstream: bool = True  # schedulefree 1.4.1 has a class of the same name
    main: bool = False  # takes part in every workload, on each backend; else in one, on the best
    averages: bool = True  # else it is a namesake of torch's
    base: str = ""  # wraps this optimizer of torch, to which the arguments go


PLUS = {"lr": 0.1, "weight_decay": 1.0}
ADAM = {"lr": 1e-3, "weight_decay": 0.1}
SGD = {"lr": 1.0, "weight_decay": 0.02}  # moves bfloat16 parameters too
# in a silent phase nothing would move, and nothing be checked
RADAM = {"lr": 0.05, "weight_decay": 0.1, "silent_sgd_phase": False}
FUSED = {"lr": 1.0, "fused": True}
MOMENTUM = {**SGD, "momentum": 0.9}
TOLERANCES = {"16bit": 10.0, "8bit": 50.0}
"""Of state that is rounded: v in 8 bits is by a sixteenth, and a step by half of that."""

FAMILY = [
    Family("ScheduleFree+", "AdamCScheduleFreePlus", PLUS, "loss", upstream=False, main=True),
    Family("AdamWScheduleFree", "AdamWScheduleFree", ADAM, main=True),
    Family("SGDScheduleFree", "SGDScheduleFree", SGD, main=True),
    Family("RAdamScheduleFree", "RAdamScheduleFree", RADAM),
    Family("AdamWScheduleFreePaper", "AdamWScheduleFreePaper", ADAM),
    Family("AdamWScheduleFreeClosure", "AdamWScheduleFreeClosure", ADAM, "closure"),
    Family("RAdamScheduleFreeClosure", "RAdamScheduleFreeClosure", RADAM, "closure"),
    Family("SGDScheduleFreeClosure", "SGDScheduleFreeClosure", SGD, "closure"),
    Family("ScheduleFreeWrapper(SGD)", "ScheduleFreeWrapper", FUSED, base="SGD"),
    Family("AdamW", "AdamW", ADAM, upstream=False, main=True, averages=False),
    Family("AdamC", "AdamC", ADAM, upstream=False, averages=False),
    Family("SGD", "SGD", MOMENTUM, upstream=False, averages=False),
]


def backend_reasons(device: torch.device) -> dict[str, str]:
    """Every backend in order of preference, with the reason why it cannot be timed here, or ""."""
    reasons = {}
    for name in backends.names():
        try:
            backends.select(name, device)
            reasons[name] = ""
        except RuntimeError as error:
            reasons[name] = str(error)
    if device.type == "cpu" and not reasons["triton"]:
        reasons["triton"] = "on the CPU it runs in Triton's interpreter only, which is for tests"
    return reasons


def family_driver(family: Family, cls: Callable, **more: Any) -> Make:
    """How a class of the family, ours or upstream's, is made and stepped."""
    if not family.base:
        return driver(cls, {**family.arguments, **more}, family.step)

    def wrapper(params: list[nn.Parameter]) -> Any:
        return cls(getattr(torch.optim, family.base)(params, **family.arguments), **more)

    return driver(wrapper, {}, family.step)


def upstream_class(family: Family) -> Callable | None:
    """Its namesake in ``schedulefree``, if there is one and the package is installed."""
    installed = family.upstream and not missing("schedulefree")
    return imported("schedulefree", family.class_name) if installed else None


def of_family(family: Family, device: torch.device) -> list[Contestant]:
    """One class on each backend, its reference class and its namesake upstream."""
    cls = getattr(sfplus_kernels, family.class_name)
    plain = getattr(reference, family.class_name + "Reference", None)
    upstream = upstream_class(family)
    # in float64 it is the oracle of all the others
    oracle = plain or upstream
    oracle_make = family_driver(family, oracle) if oracle else None
    reasons = backend_reasons(device)
    best = next((name for name, reason in reasons.items() if not reason), None)
    names = list(reasons) if family.main else [name for name in reasons if name == best]
    contestants = [
        Contestant(
            f"{family.label} {name}",
            family_driver(family, cls, backend=name),
            oracle_make,
            tier=OTHERS if not family.main else "fused" if name == best else "all",
            ours=True,
            absent=reasons[name],
            capturable=name != "eager",
        )
        for name in names
    ]
    if family.main and best not in (None, "eager"):
        # without v float32 parameters have nothing to gain from 8 bits
        formats = TOLERANCES if "SGD" not in family.label else ["16bit"]
        contestants += [
            Contestant(
                f"{family.label} {best} {state_format}",
                family_driver(family, cls, backend=best, state_format=state_format),
                oracle_make,
                "core",
                ours=True,
                tolerance=TOLERANCES[state_format],
                capturable=True,
                for_matrices=state_format == "8bit",
            )
            for state_format in formats
        ]
    if plain is not None and family.main:
        tier = "core" if family.step == "loss" else "all"
        contestants.append(
            Contestant(f"{family.label} reference", family_driver(family, plain), oracle_make, tier)
        )
    if family.upstream:
        more = {} if family.base else {"foreach": True}
        contestants.append(
            Contestant(
                f"{family.label} upstream",
                family_driver(family, upstream, **more) if upstream else _never,
                oracle_make,
                "all" if family.main else OTHERS,
                absent=missing("schedulefree"),
                writes_gradients=True,
                same_dtypes=True,
            )
        )
    return contestants


def _never(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
    raise RuntimeError("absent: the class cannot be made")
