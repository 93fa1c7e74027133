"""A step by the Triton kernels, in their interpreter: how many launches, and that it does not matter which
program finishes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    ROOT,
    assert_same_bits,
    device_of,
    make_params,
    search_path,
    set_gradients,
    snapshot,
)

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter is for machines without a GPU", allow_module_level=True)

from triton.runtime import interpreter

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree
from sfplus_kernels.backends.triton import backend as triton_backend

DEVICE = device_of("triton")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched, in their order."""
    names: list[str] = []
    grid = triton_backend._grid

    def noting(kernel: Any, n_programs: int) -> Callable[..., None]:
        names.append(kernel.fn.__name__.removesuffix("_kernel"))
        return grid(kernel, n_programs)

    monkeypatch.setattr(triton_backend, "_grid", noting)
    return names


def steps(
    optimizer_class: Any,
    n_steps: int = 3,
    *,
    shapes: Any = ((300, 3), (7,)),
    loss: Any = 1.5,
    dtypes: Any = (torch.float32,),
    **arguments: Any,
) -> Any:
    params = [p for dtype in dtypes for p in make_params(list(shapes), dtype)]
    optimizer = optimizer_class(params, backend="triton", **arguments)
    optimizer.train()
    for k in range(n_steps):
        gradients = [torch.full_like(p, k + i / 7) for i, p in enumerate(params)]
        set_gradients(params, [g.double() for g in gradients])
        optimizer.step(loss=loss)
    plan = optimizer._runtime.kept.plan
    assert plan.tickets.tolist() == [0, 0, 0]  # for the next step, or for a graph that replays
    return snapshot(optimizer, params)


@pytest.mark.parametrize(
    ("optimizer_class", "arguments", "expected"),
    [
        (AdamCScheduleFreePlus, {}, ["reduce", "update"]),
        (
            AdamCScheduleFreePlus,
            {"dtypes": (torch.float32, torch.bfloat16)},
            ["reduce", "reduce", "update", "update"],
        ),
        (AdamWScheduleFree, {}, ["update"]),
        (AdamWScheduleFree, {"skip_nonfinite": True}, ["reduce", "update"]),
    ],
)
def test_kernels_of_a_step(
    launched: list[str], optimizer_class: Any, arguments: dict[str, Any], expected: list[str]
) -> None:
    """Reduce finishes the step, or update does; the loss is not copied."""
    steps(optimizer_class, 1, loss=torch.tensor(1.5), **arguments)
    assert launched == expected


def test_many_tensors_or_programs_have_a_kernel_more(
    monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    monkeypatch.setattr(triton_backend, "MANY_TENSORS", 1)
    steps(AdamCScheduleFreePlus, 1)
    assert launched == ["reduce", "finalize_tensors", "update"]
    launched.clear()
    steps(AdamWScheduleFree, 1)
    assert launched == ["finalize", "finalize_tensors", "update"]
    launched.clear()
    monkeypatch.setattr(triton_backend, "MANY_TENSORS", 1000)
    monkeypatch.setattr(triton_backend, "MANY_PROGRAMS", 1)
    steps(AdamWScheduleFree, 1)
    assert launched == ["finalize", "update"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_read_where_it_is(dtype: torch.dtype) -> None:
    read = steps(AdamCScheduleFreePlus, loss=torch.tensor(2.75, dtype=dtype))
    assert_same_bits(read, steps(AdamCScheduleFreePlus, loss=2.75))


@pytest.mark.parametrize("optimizer_class", [AdamCScheduleFreePlus, AdamWScheduleFree])
def test_same_bits_whichever_program_finishes_the_step(
    monkeypatch: pytest.MonkeyPatch, optimizer_class: Any
) -> None:
    """Programs from the first to the last, and the other way round; and the passes one by one."""
    shapes = [(40_000,), (9,)]
    usual = steps(optimizer_class, shapes=shapes)
    builder = interpreter.interpreter_builder
    with monkeypatch.context() as patch:
        in_order = builder.set_grid_idx
        patch.setattr(
            builder, "set_grid_idx", lambda x, y, z: in_order(builder.grid_dim[0] - 1 - x, y, z)
        )
        assert_same_bits(usual, steps(optimizer_class, shapes=shapes))
    monkeypatch.setattr(triton_backend.TritonBackend, "steps_at_once", lambda self, plan: False)
    assert_same_bits(usual, steps(optimizer_class, shapes=shapes))


def test_one_variant_of_a_kernel_serves_all_models() -> None:
    """By the compiler's own way in: nothing is compiled anew for another size, number of groups or address of
    the loss."""
    folder = Path(__file__).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, str(folder / "triton_just_in_time.py")],
        env=environment | {"PYTHONPATH": search_path(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "reduce fp32 fp32 finishing": 1,
        "update fp32 fp32": 1,
        "update fp32 fp32 finishing": 1,
    }
