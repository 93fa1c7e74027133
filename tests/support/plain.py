"""The optimizers that average nothing: who is compared with whom, and on which backends."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sfplus_kernels as ours
from sfplus_kernels import reference

from . import set_gradients, stream


class PlainMember(NamedTuple):
    ours: Any
    torchs: Any
    reference: Any
    everything: dict[str, Any]  # that torch's class has too
    second_group: dict[str, Any]
    buffers: set[str]


ADAM = {"lr": 0.02, "betas": (0.8, 0.97), "weight_decay": 0.3}
ADAM_SECOND = {"lr": 0.05, "betas": (0.6, 0.9), "eps": 1e-3, "weight_decay": 0.05}
SGD = {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.3}
SGD_SECOND = {
    "lr": 0.01, "momentum": 0.5, "dampening": 0.0, "weight_decay": 0.1, "nesterov": True,
}  # fmt: skip
NO_MOMENTUM = {"lr": 0.02, "momentum": 0.0, "weight_decay": 0.3}

PLAIN = {
    "adamw": PlainMember(
        ours.AdamW,
        torch.optim.AdamW,
        reference.AdamWReference,
        ADAM,
        ADAM_SECOND,
        {"exp_avg", "exp_avg_sq"},
    ),
    "adamc": PlainMember(
        ours.AdamC,
        torch.optim.AdamW,
        reference.AdamCReference,
        ADAM,
        ADAM_SECOND,
        {"exp_avg", "exp_avg_sq"},
    ),
    "sgd": PlainMember(
        ours.SGD, torch.optim.SGD, reference.SGDReference, SGD, SGD_SECOND, {"momentum_buffer"}
    ),
    "sgd, no momentum": PlainMember(
        ours.SGD, torch.optim.SGD, reference.SGDReference, NO_MOMENTUM, NO_MOMENTUM, set()
    ),
}


def plain_groups(params: Sequence[Tensor], name: str, **more: Any) -> list[dict[str, Any]]:
    """The parameters in two groups that differ in all that groups may differ in."""
    middle = len(params) // 2
    second = {"params": list(params[middle:]), **PLAIN[name].second_group, "maximize": True}
    return [{"params": list(params[:middle])}, {**second, **more}]


def go_on(optimizer: Any, params: Sequence[Tensor], steps: int, skip: int = 0) -> None:
    """Steps of ours or of torch's; now and then a gradient is missing."""
    for k, (_, gradients) in enumerate(stream([p.shape for p in params], steps, missing=0.2)):
        if k >= skip:
            set_gradients(params, gradients)
            optimizer.step()


def follow_schedule(k: int, *optimizers: Any) -> None:
    """A warmup from 0 and a decay."""
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = 0.03 / (1 + number) * min(k / 5, 1) * max(1 - k / 60, 0)
