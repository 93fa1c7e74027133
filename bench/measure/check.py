"""Right before timed: each contestant takes a few steps beside its oracle; its traffic is counted too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.contestants.contestant import Contestant, Make, is_compiled
from bench.record.rows import Row
from bench.work import traffic
from bench.work.arrays import Arrays
from bench.work.workloads import Shapes, Workload, make_params, n_params, set_gradient

SHAPES: Shapes = [(257,), (64, 33), (1, 5), (1,), (70_001,)]
"""Odd sizes, and one that is cut into chunks."""
MATRICES: Shapes = [(64, 96), (512, 160), (33,)]
"""For those that are kept in 8 bits, and a vector beside them."""
STEPS = 8  # RAdam takes steps of SGD until the sixth
COUNTED = 2**18
"""Elements of the one tensor on which traffic is counted: single numbers beside it round away."""
PLACES = 32
"""Bytes for an element are rounded to multiples of a part so large: v in 8 bits has one exponent for 32."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Of the distance to the oracle, as a part of the way that the oracle went. A bfloat16 parameter is
rounded to 1/256 of itself, and moves by about a quarter of itself here."""


@dataclass(frozen=True)
class Checked:
    """What is known of a contestant before it is timed, for one pair of dtypes.

    ``status`` and ``reason`` are as in ``rows.Row``; the others are 0 unless it is "ok".
    """

    status: str = "ok"
    reason: str = ""
    bytes_per_param: float = 0.0
    counted: str = ""
    state_per_param: float = 0.0
    read_per_param: float = 0.0
    passes: tuple[Arrays, ...] = ()
    """Its passes over memory, where they are known; () for a step of many operations."""


def check(
    contestant: Contestant,
    device: torch.device,
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
) -> Checked:
    """Whether ``contestant`` may be timed on these dtypes, and what a step of it moves and keeps."""
    if contestant.absent:
        return Checked("absent", contestant.absent)
    if contestant.same_dtypes and param_dtype != grad_dtype:
        return Checked("left out", "takes gradients of the parameter's dtype only")
    try:
        return _check(contestant, device, param_dtype, grad_dtype)
    except Exception as error:
        # a peer that cannot run here must not end the run; the report says why it is not in it
        return Checked("failed", describe(error))


def describe(error: Exception) -> str:
    """Its type and the first line of its message, and the next one where that ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    message = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {message}"


def _check(
    contestant: Contestant,
    device: torch.device,
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
) -> Checked:
    if contestant.oracle is not None:
        shapes = MATRICES if contestant.for_matrices else SHAPES
        error = distance(
            contestant.make, contestant.oracle, device, param_dtype, grad_dtype, shapes
        )
        allowed = TOLERANCE[param_dtype] * contestant.tolerance
        if not error <= allowed:  # NaN is not either
            return Checked("wrong", f"off by {error:.1e} of the way; expected at most {allowed:g}")
    if contestant.state_arrays is not None:
        width = contestant.state_itemsize or param_dtype.itemsize
        changed = (param_dtype.itemsize, *[width] * contestant.state_arrays)
        one = Arrays(changed, (grad_dtype.itemsize,))
        counted = f"one pass: gradient, parameter, {contestant.state_arrays} state arrays"
        state = contestant.state_arrays * width
        return Checked(
            "ok", "", one.bytes_per_element, counted, state, one.bytes_read, passes=(one,)
        )
    shape = (COUNTED // 512, 512) if contestant.for_matrices else (COUNTED,)
    params = make_params([shape], device, param_dtype, grad_dtype)
    optimizer, step = contestant.make(params)
    step()
    if is_compiled(contestant):
        with traffic.Watch() as watch:  # for what comes beside our passes: a wrapper's base
            recorder = traffic.record_step(optimizer, step)
        moved, read = recorder.bytes + watch.bytes, recorder.bytes_read + watch.bytes_read
        counted = " + ".join(recorder.passes)
        passes = () if round(watch.bytes / COUNTED) else tuple(recorder.arrays)
    else:
        watch = traffic.watch_step(step)
        moved, read = watch.bytes, watch.bytes_read
        counted = f"{watch.operations} operations, watched"
        passes = tuple(watch.arrays) if len(watch.arrays) == 1 else ()
    return Checked(
        "ok",
        "",
        round(moved / COUNTED * PLACES) / PLACES,
        counted,
        traffic.state_bytes(optimizer) / COUNTED,
        round(read / COUNTED * PLACES) / PLACES,
        passes,
    )


@torch.no_grad()
def distance(
    make: Make,
    oracle: Make,
    device: torch.device,
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    shapes: Shapes = SHAPES,
) -> float:
    """How far a few steps end from the oracle's, as a part of the way that the oracle went.

    Measured where the steps end and, for an optimizer that has an ``eval()``, there too; the larger one.
    """
    params = make_params(shapes, device, param_dtype, grad_dtype)
    exact = [nn.Parameter(p.detach().double()) for p in params]
    start = _flat(exact)
    for param, twin in zip(params, exact, strict=True):
        assert param.grad is not None
        twin.grad = param.grad.double()
    runners = make(params), oracle(exact)
    generator = torch.Generator(device).manual_seed(1)
    for _ in range(STEPS):
        for param, twin in zip(params, exact, strict=True):
            grad = torch.randn(param.shape, generator=generator, device=device) * 1e-3
            set_gradient(param, grad.to(grad_dtype))
            assert param.grad is not None
            twin.grad = param.grad.double()
        for _, step in runners:
            step()
    distances = [_distance(params, exact, start)]
    if all(hasattr(optimizer, "eval") for optimizer, _ in runners):
        for optimizer, _ in runners:
            _eval(optimizer)
        distances.append(_distance(params, exact, start))
    return max(distances)


def _eval(optimizer: Any) -> None:
    optimizer.eval()


def _flat(tensors: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def _distance(params: list[nn.Parameter], exact: list[nn.Parameter], start: torch.Tensor) -> float:
    end = _flat(exact)
    return float(torch.linalg.norm(_flat(params) - end) / torch.linalg.norm(end - start))


def checked_row(
    section: str, workload: Workload, shapes: Shapes, contestant: Contestant, checked: Checked
) -> Row:
    """The row of a contestant that has not been timed yet."""
    n = n_params(shapes)
    return Row(
        section,
        workload.name,
        contestant.name,
        checked.status,
        checked.reason,
        contestant.ours,
        n,
        len(shapes),
        str(workload.param_dtype).removeprefix("torch."),
        str(workload.grad_dtype).removeprefix("torch."),
        round(checked.bytes_per_param * n),
        round(checked.read_per_param * n),
        checked.counted,
    )
