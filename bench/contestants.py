"""The optimizers that are timed: those of this package on each backend, and what a user would take instead.

Each table has one line per optimizer, so that adding a class is adding a line.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import sfplus_kernels
from bench.workloads import Workload
from sfplus_kernels import backends, reference

LOSS = 2.0
TIERS = ("fused", "core", "all")
"""Who takes part in a workload: each of these includes those before it."""

Step = Callable[[], Any]
Make = Callable[[list[nn.Parameter]], tuple[torch.optim.Optimizer, Step]]


@dataclass(frozen=True)
class Contestant:
    """One optimizer as it is timed.

    ``state_arrays`` is for an optimizer that is one fused pass: it reads gradient, parameter and so many
    state arrays of ``state_itemsize`` bytes (None: of the parameter) and writes all but the gradient. None
    means that the traffic is counted by watching a step (see ``traffic``).
    """

    name: str
    make: Make
    oracle: Make | None  # in float64, what the result has to be
    tier: str = "all"
    ours: bool = False
    absent: str = ""  # the reason
    state_arrays: int | None = None
    state_itemsize: int | None = None
    tolerance: float = 1.0  # multiplies that of the check
    writes_gradients: bool = False
    same_dtypes: bool = False  # takes only gradients of the parameter's dtype
    slow_to_make: bool = False  # takes part in the first workload only
    capturable: bool = False  # may be captured in a CUDA graph

    def is_in(self, workload: Workload) -> bool:
        return TIERS.index(self.tier) <= TIERS.index(workload.tier)


# -- this package ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """One class of this package; ``upstream`` is its namesake in ``schedulefree``."""

    label: str
    class_name: str
    arguments: dict[str, Any]
    step: str = "plain"  # or "loss": step(loss=...), or "closure": step(closure)
    upstream: str | None = None
    main: bool = False  # takes part in every workload


PLUS = {"lr": 0.1, "weight_decay": 1.0}
ADAM = {"lr": 1e-3, "weight_decay": 0.1}
SGD = {"lr": 1.0, "weight_decay": 0.1}  # moves bfloat16 parameters too

FAMILY = [
    Family("ScheduleFree+", "AdamCScheduleFreePlus", PLUS, "loss", main=True),
    Family("AdamWScheduleFree", "AdamWScheduleFree", ADAM, "plain", "AdamWScheduleFree", main=True),
    Family("SGDScheduleFree", "SGDScheduleFree", SGD, "plain", "SGDScheduleFree", main=True),
]


def driver(cls: Callable, arguments: dict[str, Any], step: str = "plain") -> Make:
    """How an optimizer is made and stepped."""

    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer = cls(params, **arguments)
        if hasattr(optimizer, "train"):
            optimizer.train()
        steps: dict[str, Step] = {
            "plain": lambda: optimizer.step(),
            "loss": lambda: optimizer.step(loss=LOSS),
            "closure": lambda: optimizer.step(lambda: LOSS),  # what the closure costs is not ours
        }
        return optimizer, steps[step]

    return make


def imported(module: str, name: str) -> Callable:
    """A class that is imported when it is made."""
    return lambda *args, **kwargs: getattr(importlib.import_module(module), name)(*args, **kwargs)


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


def family_oracle(family: Family) -> Make | None:
    """The reference class, else upstream's namesake; None where there is neither."""
    cls = getattr(reference, family.class_name + "Reference", None)
    if cls is not None:
        return driver(cls, family.arguments, family.step)
    if family.upstream is not None and not missing("schedulefree"):
        return driver(imported("schedulefree", family.upstream), family.arguments, family.step)
    return None


def of_family(family: Family, device: torch.device) -> list[Contestant]:
    """One class on each backend, its reference class and its namesake upstream."""
    oracle = family_oracle(family)
    cls = getattr(sfplus_kernels, family.class_name, None)
    if cls is None:
        return [_absent(family.label, "not in this version of the package")]
    contestants = []
    best = True
    for backend, reason in backend_reasons(device).items():
        contestants.append(
            Contestant(
                f"{family.label} {backend}",
                driver(cls, {**family.arguments, "backend": backend}, family.step),
                oracle,
                tier="fused" if best and not reason and family.main else "all",
                ours=True,
                absent=reason,
                capturable=backend != "eager",
            )
        )
        best = best and bool(reason)
    plain = getattr(reference, family.class_name + "Reference", None)
    if plain is not None:
        make = driver(plain, family.arguments, family.step)
        # in float64 it is the oracle of all the others; here it is one of those that are timed
        tier = "core" if family.step == "loss" else "all"
        contestants.append(Contestant(f"{family.label} reference", make, make, tier))
    if family.upstream is not None:
        name = f"{family.label} upstream"
        make = driver(
            imported("schedulefree", family.upstream),
            {**family.arguments, "foreach": True},
            family.step,
        )
        reason = missing("schedulefree")
        contestants.append(
            Contestant(name, make, oracle, absent=reason, writes_gradients=True, same_dtypes=True)
        )
    return contestants


# -- peers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """An optimizer of somebody else, found by the name of its class."""

    name: str
    module: str
    class_name: str
    arguments: dict[str, Any]
    oracle: str  # "AdamW" or "SGD" of torch, not fused, in float64
    state_arrays: int | None  # as in Contestant
    tier: str = "all"
    devices: tuple[str, ...] = ("cpu", "cuda")
    more: dict[str, Any] = field(default_factory=dict)  # of Contestant


MOMENTUM = {**SGD, "momentum": 0.9}

# The packages below torch's own were not at hand: their lines have never been run.
PEERS = [
    Peer("torch AdamW fused", "torch.optim", "AdamW", {**ADAM, "fused": True}, "AdamW", 2, "fused"),
    Peer("torch AdamW foreach", "torch.optim", "AdamW", {**ADAM, "foreach": True}, "AdamW", None),
    Peer("torch SGD fused", "torch.optim", "SGD", {**MOMENTUM, "fused": True}, "SGD", 1, "fused"),
    Peer("apex FusedAdam", "apex.optimizers", "FusedAdam", ADAM, "AdamW", 2, devices=("cuda",)),
    Peer(
        "Transformer Engine FusedAdam",
        "transformer_engine.pytorch.optimizers",
        "FusedAdam",
        ADAM,
        "AdamW",
        2,
        devices=("cuda",),
    ),
    Peer(
        "bitsandbytes AdamW 8-bit",
        "bitsandbytes.optim",
        "AdamW8bit",
        ADAM,
        "AdamW",
        2,
        devices=("cuda",),
        more={"state_itemsize": 1, "tolerance": 100.0},
    ),
    Peer(
        "torchao AdamW 8-bit",
        "torchao.optim",
        "AdamW8bit",
        ADAM,
        "AdamW",
        2,
        devices=("cuda",),
        more={"state_itemsize": 1, "tolerance": 100.0, "slow_to_make": True},
    ),
    Peer("optimi AdamW", "optimi", "AdamW", {**ADAM, "decouple_lr": False}, "AdamW", None),
    Peer(
        "heavyball AdamW",
        "heavyball",
        "ForeachAdamW",
        ADAM,
        "AdamW",
        2,
        more={"slow_to_make": True},
    ),
]


def missing(module: str) -> str:
    """ "" if ``module``'s package is installed, else the reason to give."""
    package = module.partition(".")[0]
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


def torch_oracle(name: str) -> Make:
    arguments = ADAM if name == "AdamW" else MOMENTUM
    return driver(getattr(torch.optim, name), {**arguments, "foreach": False})


def of_peer(peer: Peer, device: torch.device) -> Contestant:
    reason = missing(peer.module)
    if device.type not in peer.devices:
        reason = f"{peer.module.partition('.')[0]} has no optimizer for the {device.type}"
    return Contestant(
        peer.name,
        driver(imported(peer.module, peer.class_name), peer.arguments),
        torch_oracle(peer.oracle),
        peer.tier,
        absent=reason,
        state_arrays=peer.state_arrays,
        same_dtypes=True,
        **peer.more,
    )


def compiled_adamw(device: torch.device) -> Contestant:
    """torch's plain AdamW through torch.compile: what the compiler makes of the eager code."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    reason = "" if device.type == "cuda" or compiler else "no C++ compiler for torch.compile"

    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        torch._dynamo.reset()  # the graph of an earlier set of tensors would be one to fall back from
        arguments: dict[str, Any] = {**ADAM, "foreach": device.type == "cuda"}
        optimizer = torch.optim.AdamW(params, **arguments)
        return optimizer, torch.compile(optimizer.step)

    return Contestant(
        "torch AdamW compiled",
        make,
        torch_oracle("AdamW"),
        absent=reason,
        state_arrays=2,
        same_dtypes=True,
        slow_to_make=True,
    )


def _absent(name: str, reason: str) -> Contestant:
    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        raise RuntimeError(f"{name} cannot be made: {reason}")

    return Contestant(name, make, None, absent=reason)


def contestants(device: torch.device, chosen: str = "") -> list[Contestant]:
    """All, those that are absent here too; with ``chosen``, those whose name contains one of its
    comma-separated parts (in any case of letters), and the baseline.

    Raises:
        ValueError: nothing has such a name.
    """
    found = [c for family in FAMILY for c in of_family(family, device)]
    peers = [of_peer(peer, device) for peer in PEERS]
    found += [*peers[:2], compiled_adamw(device), *peers[2:]]
    parts = [part.strip().lower() for part in chosen.split(",") if part.strip()]
    for part in parts:
        if not any(part in c.name.lower() for c in found):
            names = ", ".join(c.name for c in found)
            raise ValueError(f"no optimizer has {part!r} in its name; expected a part of: {names}")
    if not parts:
        return found
    kept = [c for c in found if any(part in c.name.lower() for part in parts)]
    baseline = [c for c in found if c.name == PEERS[0].name and c not in kept]
    return [replace(c, tier="fused") for c in kept] + baseline
