"""The tensors that are stepped over: shapes of public models, and shapes that are hard on a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sfplus_kernels.contract.eight_bits import BLOCK, SMALLEST

Shapes = list[tuple[int, ...]]


def gpt2(layers: int = 12, vocabulary: int = 50257) -> Shapes:
    """GPT-2 124M: 768 wide, 1,024 positions, head tied to the embedding."""
    w = 768
    block: Shapes = [(w,), (w,), (w, 3 * w), (3 * w,), (w, w), (w,)]
    block += [(w,), (w,), (w, 4 * w), (4 * w,), (4 * w, w), (w,)]
    outside: Shapes = [(vocabulary, w), (1024, w), (w,), (w,)] if vocabulary else []
    return outside + block * layers


def llama(
    layers: int, width: int, hidden: int, kv: int, vocabulary: int, tied: bool, ranks: int = 1
) -> Shapes:
    """A Llama; with ``ranks`` above 1 what one rank holds of it: FSDP cuts dimension 0."""
    block: Shapes = [(width, width), (kv, width), (kv, width), (width, width)]
    block += [(hidden, width), (hidden, width), (width, hidden), (width,), (width,)]
    outside: Shapes = [(vocabulary, width)] * (1 if tied else 2) + [(width,)] if vocabulary else []
    return [(rows // ranks, *rest) for rows, *rest in outside + block * layers]


def llama_1b(layers: int = 16, vocabulary: int = 128256) -> Shapes:
    """Llama-3.2-1B; 8 key-value heads of 64."""
    return llama(layers, 2048, 8192, 512, vocabulary, tied=True)


def llama_8b_shard(layers: int = 32, vocabulary: int = 128256) -> Shapes:
    """One of 8 ranks' share of Llama-3-8B; 8 key-value heads of 128."""
    return llama(layers, 4096, 14336, 1024, vocabulary, tied=False, ranks=8)


def olmoe(layers: int = 16, experts: int = 64) -> Shapes:
    """Blocks of OLMoE-1B-7B: experts of 3 x 2,048 x 1,024, attention, router, norms."""
    w, hidden = 2048, 1024
    expert: Shapes = [(hidden, w), (hidden, w), (w, hidden)]
    rest: Shapes = [(w, w)] * 4 + [(experts, w)] + [(w,)] * 4
    return (rest + expert * experts) * layers


def odd(n_tensors: int, around: int) -> Shapes:
    """Sizes that no vector width divides."""
    return [((around + 2 * i) | 1,) for i in range(n_tensors)]


@dataclass(frozen=True)
class Workload:
    """A list of tensors and who steps over it.

    ``tier`` is "all" (every backend of the main classes, and their peers), "core" (each main class on its
    best backend, the reference ScheduleFree+ and torch's fused optimizers), "fused" (core without the
    reference) or "others" (the other classes, their namesakes upstream and the baseline).
    """

    name: str
    title: str
    shapes: Callable[[], Shapes]
    tier: str = "core"
    param_dtype: torch.dtype = torch.float32
    grad_dtype: torch.dtype = torch.float32
    passes: bool = False  # each pass alone is timed too

    @property
    def of_matrices(self) -> bool:
        """Whether all but a hundredth of the elements can be kept in 8 bits."""
        shapes = self.shapes()
        matrices = [s for s in map(torch.Size, shapes) if len(s) > 1 and s.numel() >= SMALLEST]
        in_blocks = n_params([s for s in matrices if s[1:].numel() % BLOCK == 0])
        return in_blocks >= 0.99 * n_params(shapes)


def flat(n: int) -> Callable[[], Shapes]:
    return lambda: [(n,)]


BF16 = torch.bfloat16
OTHER_CLASSES = "other-classes"
_SMALL = [
    Workload("1000x1024", "1,000 tensors of 1,024", lambda: [(1024,)] * 1000),
    Workload("10000x64", "10,000 tensors of 64", lambda: [(64,)] * 10000),
]

# Two cores, 8 GB and a few minutes: parts of the larger models, and their names say so.
CPU = [
    Workload(
        "gpt2-blocks", "4 of the 12 blocks of GPT-2 124M", lambda: gpt2(4, 0), "all", passes=True
    ),
    Workload(OTHER_CLASSES, "4 of the 12 blocks of GPT-2 124M", lambda: gpt2(4, 0), "others"),
    Workload("gpt2-124m", "GPT-2 124M, whole", gpt2, "fused"),
    Workload("flat", "one tensor of 2^25", flat(2**25), passes=True),
    Workload("llama-1b-block", "1 of the 16 blocks of Llama-3.2-1B", lambda: llama_1b(1, 0)),
    Workload(
        "llama-8b-shard-block",
        "1 of the 32 blocks of Llama-3-8B, one rank of 8",
        lambda: llama_8b_shard(1, 0),
    ),
    Workload(
        "moe-block",
        "1 of the 16 blocks of OLMoE with 8 of its 64 experts",
        lambda: olmoe(1, 8),
        "fused",
    ),
    *_SMALL,
    Workload("odd", "300 tensors, all sizes odd", lambda: odd(300, 99_001)),
    Workload(
        "bf16",
        "4 blocks of GPT-2, bfloat16 with a float32 master",
        lambda: gpt2(4, 0),
        "core",
        BF16,
        BF16,
    ),
    Workload(
        "bf16-grads",
        "4 blocks of GPT-2, gradients in bfloat16",
        lambda: gpt2(4, 0),
        "fused",
        torch.float32,
        BF16,
    ),
]

# Never run: no GPU was at hand.
GPU = [
    Workload("gpt2-124m", "GPT-2 124M, whole", gpt2, "all", passes=True),
    Workload(OTHER_CLASSES, "GPT-2 124M, whole", gpt2, "others"),
    Workload("flat", "one tensor of 10^9", flat(10**9), "fused", passes=True),
    Workload("llama-1b", "Llama-3.2-1B, whole", llama_1b, "all"),
    Workload("llama-8b-shard", "one rank's share of 8 of Llama-3-8B", llama_8b_shard),
    Workload("moe", "2 of the 16 blocks of OLMoE, all experts", lambda: olmoe(2)),
    *_SMALL,
    Workload("odd", "1,000 tensors, all sizes odd", lambda: odd(1000, 999_001)),
    Workload("bf16", "Llama-3.2-1B, bfloat16 with a float32 master", llama_1b, "core", BF16, BF16),
    Workload(
        "bf16-grads",
        "Llama-3.2-1B, gradients in bfloat16",
        llama_1b,
        "fused",
        torch.float32,
        BF16,
    ),
]

# To see in a minute or two that everything runs; the figures are not worth keeping.
QUICK = [
    Workload(
        "gpt2-blocks", "1 of the 12 blocks of GPT-2 124M", lambda: gpt2(1, 0), "all", passes=True
    ),
    Workload(OTHER_CLASSES, "1 of the 12 blocks of GPT-2 124M", lambda: gpt2(1, 0), "others"),
    Workload("flat", "one tensor of 2^22", flat(2**22)),
    Workload("odd", "100 tensors, all sizes odd", lambda: odd(100, 9_001)),
    Workload("1000x1024", "1,000 tensors of 1,024", lambda: [(1024,)] * 1000),
    Workload("bf16", "1 block of GPT-2, bfloat16", lambda: gpt2(1, 0), "core", BF16, BF16),
]


def suite(device_type: str, quick: bool) -> list[Workload]:
    """The workloads for a device; the first is the one in which every contestant takes part."""
    if quick:
        return QUICK
    return GPU if device_type == "cuda" else CPU


def n_params(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def make_params(
    shapes: Shapes,
    device: torch.device | str = "cpu",
    param_dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[nn.Parameter]:
    """Random parameters with random gradients."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> torch.Tensor:
        values = torch.empty(shape, device=device, dtype=dtype)
        return values.normal_(0, scale, generator=generator)

    params = []
    for shape in shapes:
        param = nn.Parameter(normal(shape, 0.02, param_dtype))
        set_gradient(param, normal(shape, 1e-3, grad_dtype))
        params.append(param)
    return params


def set_gradient(param: nn.Parameter, grad: torch.Tensor) -> None:
    """Also where the gradient's dtype is not the parameter's, which torch wants to be told."""
    if grad.dtype != param.dtype:
        param.grad_dtype = grad.dtype
    param.grad = grad


def alias(params: list[nn.Parameter], *, own_gradients: bool = False) -> list[nn.Parameter]:
    """Other parameters over the same memory, so that many contestants fit beside each other.

    What is in the memory makes no difference to the time; ``own_gradients`` is for an optimizer that
    writes to the gradients.
    """
    others = []
    for param in params:
        assert param.grad is not None
        other = nn.Parameter(param.detach())
        set_gradient(other, param.grad.clone() if own_gradients else param.grad)
        others.append(other)
    return others
