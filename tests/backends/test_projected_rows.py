"""Rows of a fixed norm over state of 16 and of 8 bits, in the kernels of each backend: the bits of the eager
backend, which is looked at in tests/numbers/test_projection_in_bits.py."""

from typing import Any

import half_entries as half
import pytest
import quarter_entries as quarter
import torch
from half_entries import CPU, KERNELS, ON_HOST, backend_of, eager
from support import assert_same_bits
from torch import Tensor

import sfplus_kernels._C as _C
from sfplus_kernels.backends import cpu
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.layout import Format, Global, Group, Hyper

isa, roots_are_correctly_rounded = half.isa, half.roots_are_correctly_rounded
pytestmark = pytest.mark.usefixtures("roots_are_correctly_rounded")
KINDS = [
    ("16bit", torch.float32, "mve"),
    ("16bit", torch.bfloat16, "mve"),
    ("16bit", torch.float32, "e"),
    ("16bit", torch.bfloat16, "mv"),
    ("16bit", torch.bfloat16, "m"),
    ("16bit", torch.float32, "mv"),
    ("8bit", torch.float32, "mve"),
    ("8bit", torch.bfloat16, "ve"),
    ("8bit", torch.bfloat16, "e"),
    ("8bit", torch.bfloat16, "mv"),
    ("8bit", torch.float32, "mv"),
]
"""Of each kernel that projects a row one at least; the last of a format have nothing but y in float32."""
SHAPES = {"16bit": [(5, 33), (2, 513), (40, 8), (3, 1)], "8bit": [(5, 32), (2, 544), (3, 64)]}


def make_entry(
    state_format: str, dtype: torch.dtype, kept: str, shape: tuple[int, int], slot: int, **more: Any
) -> Entry:
    """Of rows, each of them beginning at a multiple of its length in memory."""
    of_format = half if state_format == "16bit" else quarter
    entry = of_format.make_entry(dtype, shape[0] * shape[1], kept=kept, slot=slot, **more)
    fields = ("param", "exp_avg", "exp_avg_sq", "displacement", "y_low")
    tensors = {name: getattr(entry, name) for name in fields}
    viewed = {name: t.view(shape) for name, t in tensors.items() if t is not None}
    if entry.exponents is not None:
        viewed["exponents"] = entry.exponents.view(shape[0], -1)
    entry = entry._replace(projected=True, **viewed)
    if slot == 0 and shape[0] > 1:  # a row of zeros
        entry.param[1] = 0
        for tensor in (entry.y_low, entry.displacement, entry.exp_avg):
            if tensor is not None:
                tensor.view(torch.uint8)[1] = 0
    return entry


def make_run(n_slots: int) -> RunState:
    run = half.make_run(n_slots)
    run.groups[0, Group.Y_BETA] = 0.7
    run.hyper[0, Hyper.ROW_NORM] = 1.5
    return run


def make_entries(state_format: str, dtype: torch.dtype, kept: str, **more: Any) -> list[Entry]:
    return [
        make_entry(state_format, dtype, kept, shape, slot, seed=slot, **more)
        for slot, shape in enumerate(SHAPES[state_format])
    ]


def buffers(entry: Entry) -> list[Tensor]:
    bits = None if entry.y_low is None else entry.y_low.view(torch.uint8)
    kept = (entry.param, entry.exp_avg, entry.exp_avg_sq, entry.exponents, entry.displacement, bits)
    return [t.clone() for t in kept if t is not None]


def updated(backend: Any, entries: list[Entry], run: RunState | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    grads = [
        half.values(e.param.numel(), generator).view(e.param.shape).to(e.grad_dtype)
        for e in entries
        if e.grad_dtype
    ]
    for entry, grad in zip(entries, grads, strict=True):
        if entry.slot == 0 and len(grad) > 1:
            grad[1] = 0
    plan = backend.plan(entries, CPU)
    backend.set_gradients(plan, grads)
    backend.update(plan, make_run(len(entries)) if run is None else run)
    return [tensor for entry in entries for tensor in buffers(entry)]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("state_format", "dtype", "kept"), KINDS)
def test_the_bits_of_eager(backend: str, state_format: str, dtype: torch.dtype, kept: str) -> None:
    results = [
        updated(each, make_entries(state_format, dtype, kept))
        for each in (eager(), backend_of(backend))
    ]
    assert_same_bits(*results)
    entries = make_entries(state_format, dtype, kept)
    wanted = Format.HALF if state_format == "16bit" else Format.QUARTER
    assert entries[0].format == wanted
    free = [e._replace(projected=False) for e in entries]
    without = updated(eager(), free)
    assert not torch.equal(without[0], results[0][0])
    assert not results[0][0][1].any()  # the row of zeros


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("part", [(128, 10**6, 0), (2**32 - 64, 10**6, 0), (64, 64, 320)])
def test_random_words_are_of_the_whole_tensor(backend: str, part: tuple[int, int, int]) -> None:
    """Rows of 32, two of them to a run where there are several."""
    found = []
    for own in (part, None):
        for each in (eager(), backend_of(backend)):
            entry = make_entry("8bit", torch.bfloat16, "mve", (6, 32), 0)
            run = part[1] if part[1] < 192 else 192
            at = None if own is None else (part[0], run, part[2])
            found.append(updated(each, [entry._replace(part=at)]))
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[2], found[3])
    assert not torch.equal(found[0][-2], found[2][-2])


@pytest.mark.parametrize(("state_format", "dtype", "kept"), KINDS)
def test_instruction_sets(isa: str, state_format: str, dtype: torch.dtype, kept: str) -> None:
    found = updated(cpu.CpuBackend(), make_entries(state_format, dtype, kept))
    assert_same_bits(found, updated(eager(), make_entries(state_format, dtype, kept)))
    assert _C.isa() == isa


@pytest.mark.parametrize("backend", ["cpu", ON_HOST])
@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_memory_of_any_alignment(backend: str, state_format: str, offset: int) -> None:
    results = [
        updated(backend_of(backend), make_entries(state_format, torch.bfloat16, "mve", offset=o))
        for o in (0, offset)
    ]
    assert_same_bits(*results)


@pytest.mark.parametrize(
    ("state_format", "dtype"),
    [
        ("8bit", torch.bfloat16),
        pytest.param("8bit", torch.float32, marks=pytest.mark.slow),
        pytest.param("16bit", torch.float32, marks=pytest.mark.slow),
        pytest.param("16bit", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_threads(state_format: str, dtype: torch.dtype) -> None:
    """Rows longer than what stays in a cache together, and short ones, of which many do."""
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 7):
            torch.set_num_threads(n)
            entries = [
                make_entry(state_format, dtype, "mve", shape, slot)
                for slot, shape in enumerate([(9, 8224), (1000, 32)])
            ]
            results.append(updated(cpu.CpuBackend(), entries))
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_a_skipped_step_writes_nothing(backend: str, state_format: str) -> None:
    entries = make_entries(state_format, torch.bfloat16, "mve")
    run = make_run(len(entries))
    run.globals[Global.SKIP] = 1
    before = [tensor for entry in entries for tensor in buffers(entry)]
    assert_same_bits(updated(backend_of(backend), entries, run), before)
