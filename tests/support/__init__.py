"""What the tests share: models of awkward shapes, streams of gradients, runs of optimizers."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfplus_kernels import AdamCScheduleFreePlus

ROOT = Path(__file__).parents[2]
"""Of the repository."""

# empty first, in the middle and last; odd sizes; 0-dim; one that crosses a chunk of the table
SHAPES = [(0,), (7,), (33, 5), (), (0, 3), (257,), (64, 3), (1,), (0,)]

BACKENDS = ["eager", "cpu", "triton", *(["cuda"] if torch.cuda.is_available() else [])]
"""Those that the tests run on: without a GPU, Triton's in its interpreter, and test_cuda_on_host.py
instead of ``cuda``."""

EVERYTHING: dict[str, Any] = {
    "lr": 0.5,
    "sf_beta1": 0.8,
    "weight_decay": 3.0,
    "r": 1.0,
    "polyak_beta": 0.7,
    "c_warmup": 5,
    "sf_beta1_anneal_steps": 30,
    "warmup_steps": 10,
}
"""Every mechanism at once."""


def device_of(backend: str) -> torch.device:
    """Where the tests of a backend run."""
    on_gpu = backend in ("triton", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def steps_for(backend: str, steps: int) -> int:
    """Fewer steps in the interpreter, where a program takes milliseconds."""
    return min(steps, 16) if backend == "triton" and device_of(backend).type == "cpu" else steps


def make_params(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        )
        for shape in shapes
    ]


def two_groups(params: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The parameters in two groups that differ in all that groups may differ in."""
    middle = len(params) // 2
    return [
        {"params": list(params[:middle])},
        {
            "params": list(params[middle:]),
            "lr": 0.3,
            "betas": (0.8, 0.9),
            "eps": 1e-6,
            "weight_decay": 1.0,
            "r": 2.0,
            "c_warmup": 3,
            "warmup_steps": 4,
            "weight_lr_power": 1.0,
        },
    ]


def stream(
    shapes: Sequence[torch.Size | tuple[int, ...]],
    steps: int,
    *,
    missing: float = 0.0,
    seed: int = 1,
) -> Iterator[tuple[float, list[Tensor | None]]]:
    """(loss, float64 gradients) of each step; a gradient is None with probability ``missing``."""
    generator = torch.Generator().manual_seed(seed)
    scales = [10 ** float(torch.randn((), generator=generator)) for _ in shapes]
    for _ in range(steps):
        gradients: list[Tensor | None] = []
        for shape, scale in zip(shapes, scales, strict=True):
            gradient = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            absent = float(torch.rand((), generator=generator)) < missing
            gradients.append(None if absent else gradient)
        yield 2 + float(torch.rand((), generator=generator)), gradients


MIXED_GRADIENTS = hasattr(Tensor, "grad_dtype")
"""Whether this version of torch lets a gradient have another dtype than its parameter."""


def allow_gradients_of_any_dtype(param: Tensor) -> None:
    if not MIXED_GRADIENTS:
        pytest.skip("in this version of torch a gradient has its parameter's dtype")
    param.grad_dtype = None  # type: ignore[attr-defined]


def set_gradients(
    params: Sequence[Tensor], gradients: Sequence[Tensor | None], dtype: torch.dtype | None = None
) -> None:
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is None:
            param.grad = None
            continue
        wanted = dtype or param.dtype
        if wanted != param.dtype:
            allow_gradients_of_any_dtype(param)
        param.grad = gradient.to(param.device, wanted)


def run(
    optimizer: Any,
    params: Sequence[Tensor],
    steps: int,
    *,
    missing: float = 0.0,
    grad_dtype: torch.dtype | None = None,
    seed: int = 1,
    skip: int = 0,
    each: Callable[[int], None] | None = None,
) -> None:
    """Steps ``skip`` to ``steps`` of the stream with this seed."""
    optimizer.train()
    shapes = [p.shape for p in params]
    for k, (loss, gradients) in enumerate(stream(shapes, steps, missing=missing, seed=seed)):
        if k < skip:
            continue
        set_gradients(params, gradients, grad_dtype)
        optimizer.step(loss=loss)
        if each is not None:
            each(k)


def snapshot(optimizer: AdamCScheduleFreePlus, params: Sequence[Tensor]) -> dict[str, Any]:
    """A deep copy of everything that a step may change, counters apart."""
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group.pop("skipped_steps")
        group.pop("consecutive_skipped_steps")
    return {"params": [p.detach().clone() for p in params], "state": state}


def everything_of(optimizer: Any, params: Sequence[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
    """Copies of the state dict and of the parameters."""
    return copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params]))


def through_a_file(value: Any) -> Any:
    """What is found where ``value`` was saved."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_bits(a: Any, b: Any, where: str = "") -> None:
    """Equality of nested containers to the last bit, NaN equal to NaN, dtypes and shapes included."""
    assert type(a) is type(b), f"{where}: {type(a)} against {type(b)}"
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(left, right, f"{where}[{index}]")
    elif isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        assert torch.equal(bits(a), bits(b)), where
    else:
        assert a == b, f"{where}: {a} against {b}"


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes, in the order of its elements."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone()


def search_path(*folders: Path) -> str:
    """PYTHONPATH for a process of the tests: these folders, the tests' own, and what there was before."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), str(ROOT / "tests"), *([before] if before else [])])
