"""The tensors that are stepped over and the optimizers that step over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

LOSS = 2.0

Step = Callable[[], Any]


def gpt2_shapes(layers: int, width: int) -> list[tuple[int, ...]]:
    """The matrices of GPT-2 blocks and ten vectors for each block."""
    matrices = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    vectors = [(3 * width,), (4 * width,), *[(width,)] * 8]
    return [*matrices, *vectors] * layers


SIZES = {"full": gpt2_shapes(4, 768), "quick": gpt2_shapes(2, 128)}
"""28.4 million parameters, far beyond any cache; and 0.4 million, to see that everything runs."""


def make_params(shapes: list[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    """float32 parameters with gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in shapes:
        param = nn.Parameter(torch.randn(shape, generator=generator) * 0.02)
        param.grad = torch.randn(shape, generator=generator) * 1e-3
        params.append(param)
    return params


@dataclass(frozen=True)
class Peer:
    """One optimizer, and the traffic of its step in bytes per float32 parameter.

    ``bytes_per_param`` counts every read and every write of an array by an operation of the step, cache
    or no cache; ``counted`` says how.
    """

    name: str
    bytes_per_param: int
    counted: str
    make: Callable[[list[nn.Parameter]], tuple[torch.optim.Optimizer, Step]]


def _plus(cls: type, **kwargs: Any) -> Callable:
    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer = cls(params, lr=0.1, weight_decay=1.0, **kwargs)
        optimizer.train()
        return optimizer, lambda: optimizer.step(loss=LOSS)

    return make


def _plain(cls: type, **kwargs: Any) -> Callable:
    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        optimizer = cls(params, lr=1e-3, weight_decay=0.1, **kwargs)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer, optimizer.step

    return make


def _upstream(name: str) -> Callable:
    def make(params: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Step]:
        import schedulefree

        return _plain(getattr(schedulefree, name), foreach=True)(params)

    return make


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "ScheduleFree+ cpu",
            44,
            "reduce reads g, e; update reads g, y, e, m, v and writes y, e, m, v",
            _plus(AdamCScheduleFreePlus, backend="cpu"),
        ),
        Peer(
            "AdamWScheduleFree cpu",
            28,
            "reads g, y, e, v and writes y, e, v",
            _plain(AdamWScheduleFree, backend="cpu"),
        ),
        Peer(
            "SGDScheduleFree cpu",
            20,
            "reads g, y, e and writes y, e",
            _plain(SGDScheduleFree, backend="cpu"),
        ),
        Peer(
            "AdamW fused",
            28,
            "reads g, p, m, v and writes p, m, v",
            _plain(torch.optim.AdamW, fused=True),
        ),
        Peer(
            "AdamW foreach",
            80,
            "8 passes: p*, lerp m, v*, addcmul v, sqrt, /, +, addcdiv p",
            _plain(torch.optim.AdamW, foreach=True),
        ),
        Peer(
            "SGD fused, momentum",
            20,
            "reads g, p, m and writes p, m",
            _plain(torch.optim.SGD, momentum=0.9, fused=True),
        ),
        Peer(
            "schedulefree AdamW foreach",
            104,
            "10 passes: v *, addcmul v, v /, sqrt, + eps, g /, g + y, lerp y, y + g, z - g",
            _upstream("AdamWScheduleFree"),
        ),
        Peer(
            "schedulefree SGD foreach",
            48,
            "4 passes: g + y, lerp y, y + g, z - g",
            _upstream("SGDScheduleFree"),
        ),
        Peer(
            "ScheduleFree+ reference",
            240,
            "27 operations of the reference class",
            _plus(AdamCScheduleFreePlusReference),
        ),
    )
}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state that are as large as their parameter."""
    return sum(
        value.numel() * value.element_size()
        for param, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor) and value.shape == param.shape
    )
