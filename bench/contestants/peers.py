"""What a user would take instead: torch's optimizers and other packages'. One line each."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bench.contestants.contestant import Contestant, Make, Step, driver, imported, missing
from bench.contestants.family import ADAM, FAMILY, MOMENTUM, SGD, family_driver
from sfplus_kernels import reference


@dataclass(frozen=True)
class Peer:
    """An optimizer of somebody else, found by the name of its class."""

    name: str
    module: str
    class_name: str
    arguments: dict[str, Any]
    oracle: str  # "AdamW" or "SGD" of torch, not fused, or a reference class of ours, in float64
    state_arrays: int | None  # as in Contestant
    tier: str = "all"
    devices: tuple[str, ...] = ("cpu", "cuda")
    more: dict[str, Any] = field(default_factory=dict)  # of Contestant


THEIRS = {**ADAM, "betas": (0.9, 0.999), "eps": 1e-8}  # torch's, where the defaults are others

# Of the packages below torch's own, those of pyproject's extra "peers" were at hand, on a CPU: optimi 0.3,
# heavyball 3.2, torchao 0.18, bitsandbytes 0.50, pytorch_optimizer 4.1. The other lines have never been run.
PEERS = [
    Peer(
        "torch AdamW fused", "torch.optim", "AdamW", {**ADAM, "fused": True}, "AdamW", None, "fused"
    ),
    Peer("torch AdamW foreach", "torch.optim", "AdamW", {**ADAM, "foreach": True}, "AdamW", None),
    Peer(
        "torch SGD fused", "torch.optim", "SGD", {**MOMENTUM, "fused": True}, "SGD", None, "fused"
    ),
    Peer("apex FusedAdam", "apex.optimizers", "FusedAdam", THEIRS, "AdamW", 2, devices=("cuda",)),
    Peer(
        "Transformer Engine FusedAdam",
        "transformer_engine.pytorch.optimizers",
        "FusedAdam",
        THEIRS,
        "AdamW",
        2,
        devices=("cuda",),
    ),
    Peer(
        "bitsandbytes AdamW 8-bit",
        "bitsandbytes.optim",
        "AdamW8bit",
        THEIRS,
        "AdamW",
        2,
        more={"state_itemsize": 1, "tolerance": 100.0},
    ),
    Peer(
        "torchao AdamW 8-bit",
        "torchao.optim",
        "AdamW8bit",
        THEIRS,
        "AdamW",
        2,
        more={"state_itemsize": 1, "tolerance": 100.0, "slow_to_make": True},
    ),
    Peer("optimi AdamW", "optimi", "AdamW", THEIRS, "AdamW", None),
    Peer(
        "heavyball AdamW",
        "heavyball",
        "AdamW",
        {**THEIRS, "consume_grad": False},  # else later steps have no gradients
        "AdamW",
        2,
        more={"slow_to_make": True, "tolerance": 2.0},
    ),
    Peer(
        "heavyball SFAdamW",
        "heavyball",
        "SFAdamW",
        {**THEIRS, "consume_grad": False},
        "AdamWScheduleFree",
        2,
        more={"slow_to_make": True, "tolerance": 4.0},
    ),
    Peer("pytorch_optimizer AdamW", "pytorch_optimizer", "AdamW", THEIRS, "AdamW", None),
    Peer(
        "pytorch_optimizer ScheduleFreeAdamW",
        "pytorch_optimizer",
        "ScheduleFreeAdamW",
        THEIRS,
        "AdamWScheduleFree",
        None,
        more={"tolerance": 2.0},
    ),
    Peer(
        "pytorch_optimizer ScheduleFreeSGD",
        "pytorch_optimizer",
        "ScheduleFreeSGD",
        SGD,
        "SGDScheduleFree",
        None,
    ),
]


def oracle_of(name: str) -> Make:
    """What a peer is checked against, by the name in its line."""
    family = next((f for f in FAMILY if f.class_name == name and f.averages), None)
    if family is None:
        return torch_oracle(name)
    return family_driver(family, getattr(reference, f"{name}Reference"))


def torch_oracle(name: str) -> Make:
    arguments = ADAM if name == "AdamW" else MOMENTUM
    return driver(getattr(torch.optim, name), {**arguments, "foreach": False})


def of_peer(peer: Peer, device: torch.device) -> Contestant:
    reason = missing(peer.module)
    if not reason and device.type not in peer.devices:
        reason = f"timed on {' and '.join(peer.devices)} only"
    return Contestant(
        peer.name,
        driver(imported(peer.module, peer.class_name), peer.arguments),
        oracle_of(peer.oracle),
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
