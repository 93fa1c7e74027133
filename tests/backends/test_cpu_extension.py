"""The compiled extension by itself: its layout, storage conversions, instruction sets, sums."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from support import EVERYTHING, assert_same_bits, make_params, run, snapshot
from torch import Tensor

import sfplus_kernels._C as _C
from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.backends.cpu import CHUNK_SIZE, DTYPES, CpuBackend
from sfplus_kernels.contract import layout
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS, GroupCoef, Move, Sum

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=_C.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.isa()
    _C.set_isa(request.param)
    yield str(request.param)
    _C.set_isa(before)


def make_entry(
    param: Tensor, displacement: Tensor, master: Tensor | None = None, grad: Tensor | None = None
) -> Entry:
    return Entry(
        param=param,
        exp_avg=torch.zeros_like(displacement),
        exp_avg_sq=torch.zeros_like(displacement),
        displacement=displacement,
        master_param=master,
        group=0,
        slot=0,
        grad_dtype=None if grad is None else grad.dtype,
    )


def same_numbers(actual: Tensor, expected: Tensor) -> bool:
    """Equal bits, any NaN being as good as another."""
    nan = expected.isnan()
    as_bits = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    equal = actual.view(as_bits) == expected.view(as_bits)
    return bool((equal | (nan & actual.isnan())).all())


def test_layout_is_that_of_python() -> None:
    exported = _C.layout()
    dtypes = exported.pop("DType")
    assert {str(d).removeprefix("torch.").upper(): i for d, i in DTYPES.items()} == dtypes
    for name, columns in exported.items():
        assert {c.name: int(c) for c in getattr(layout, name)} == columns, name
    enums = {
        n: e for n, e in vars(layout).items() if isinstance(e, type) and issubclass(e, IntEnum)
    }
    in_python = {name for name, enum in enums.items() if len(enum) > 0}  # without the base classes
    assert exported.keys() == in_python


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_precision_value_is_read_exactly(dtype: torch.dtype) -> None:
    """Through ``update``, with coefficients that copy the gradient into exp_avg."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    backend, run_state = CpuBackend(), RunState.zeros(1, 1, CPU)
    run_state.group_coefs[0, GroupCoef.GRAD_TO_M] = 1
    entry = make_entry(torch.zeros(2**16), torch.zeros(2**16), grad=every)
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [every])
    backend.update(plan, run_state)
    # the product with 0 and 1 turns -0 into 0 and keeps NaN
    assert same_numbers(entry.exp_avg, every.to(torch.float32) + 0.0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_half_precision_is_that_of_torch(dtype: torch.dtype) -> None:
    """Through ``interpolate``: every value, the middles between neighbours and what lies around them,
    and random bit patterns, among them subnormals, infinities and NaN."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = every.to(torch.float32)
    middles = (values[:-1].double() / 2 + values[1:].double() / 2).float()
    around = [torch.nextafter(middles, torch.full_like(middles, s)) for s in (-1e38, 1e38)]
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (10**6,), generator=generator).to(torch.int32)
    y = torch.cat([values, middles, *around, patterns.view(torch.float32)])
    param = torch.zeros(len(y), dtype=dtype)
    plan = CpuBackend().plan([make_entry(param, torch.zeros_like(y), master=y)], CPU)
    CpuBackend().interpolate(plan, RunState.zeros(1, 1, CPU), Move.TO_Y)
    assert same_numbers(param, y.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_instruction_sets_give_the_same_bits(dtype: torch.dtype) -> None:
    before, results = _C.isa(), {}
    try:
        for name in _C.available_isas():
            _C.set_isa(name)
            assert _C.isa() == name
            params = make_params([(1001,), (0,), (33, 7), ()], dtype)
            optimizer = AdamCScheduleFreePlus(params, backend="cpu", **EVERYTHING)
            run(optimizer, params, 8)
            optimizer.eval()
            results[name] = snapshot(optimizer, params)
    finally:
        _C.set_isa(before)
    assert "portable" in results
    for other in results.values():
        assert_same_bits(results["portable"], other)


def test_unknown_instruction_set_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'abacus' cannot be had.*portable.*SFPLUS_CPU_ISA"):
        _C.set_isa("abacus")


@pytest.mark.parametrize(("name", "expected"), [("portable", "portable"), ("abacus", "ValueError")])
def test_environment_variable_chooses_the_instruction_set(name: str, expected: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import sfplus_kernels._C as _C; print(_C.isa())"],
        env={**os.environ, "SFPLUS_CPU_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in (result.stdout if expected == "portable" else result.stderr)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("numel", [1, 31, 32, 33, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE - 1])
def test_sums(dtype: torch.dtype, numel: int) -> None:
    """On small integers, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(numel)
    grad = torch.randint(-3, 4, (numel,), generator=generator).to(dtype)
    e = torch.randint(-3, 4, (numel,), generator=generator).to(dtype)
    backend = CpuBackend()
    plan = backend.plan([make_entry(torch.zeros(numel, dtype=dtype), e, grad=grad)], CPU)
    backend.set_gradients(plan, [grad])
    backend.reduce(plan, with_e=True)
    assert len(plan.table.partials) == -(-numel // CHUNK_SIZE)
    sums = plan.table.partials.sum(0)
    assert float(sums[Sum.GRAD_L1]) == float(grad.abs().sum())
    assert float(sums[Sum.GRAD_DOT_E]) == float((grad * e).sum())
    assert float(sums[Sum.GRAD_SQ]) == float((grad * grad).sum())


def test_a_slot_sums_every_nth_chunk() -> None:
    """With more chunks than slots, slot i has the chunks i, i + 2048, ..."""
    count = VIRTUAL_BLOCKS + 3
    grads = [torch.tensor([float(i)]) for i in range(count)]
    entries = [make_entry(torch.zeros(1), torch.zeros(1), grad=g) for g in grads]
    backend = CpuBackend()
    plan = backend.plan(entries, CPU)
    backend.set_gradients(plan, grads)
    backend.reduce(plan, with_e=True)
    expected = torch.arange(VIRTUAL_BLOCKS, dtype=torch.float64)
    expected[:3] += torch.arange(VIRTUAL_BLOCKS, count)
    assert torch.equal(plan.table.partials[:, Sum.GRAD_L1], expected)


def test_nothing_but_empty_tensors() -> None:
    params = make_params([(0,), (3, 0)], torch.float32)
    optimizer = AdamCScheduleFreePlus(params, backend="cpu")
    run(optimizer, params, 2)
    optimizer.eval()
    figures = optimizer.metrics()
    assert (figures["k"], figures["grad_l1"], figures["scheduled_lr"]) == (2, 0.0, [0.0])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_memory_loop(n_threads: int, dtype: torch.dtype) -> None:
    """Reads all, changes the first ones, in whole blocks of 64 elements, over two parts from either end."""
    numel, whole = 600_001, 600_000
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randint(99, (numel,), generator=generator, dtype=dtype) for _ in range(4)]
    before = [t.clone() for t in tensors]
    arrays = [(t.data_ptr(), t.itemsize) for t in tensors]
    for backwards in (False, True):
        three, one = (_C.MemoryLoop([(arrays, numel)] * n, 2) for n in (3, 1))
        assert three.run(backwards, False, n_threads) == one.run(backwards, False, n_threads)
        assert all(map(torch.equal, tensors, before))  # written as they were
    behind = [(at + 64 * width, width) for at, width in arrays]
    loop = _C.MemoryLoop([(arrays, 64), (behind, numel - 64)], 2)
    found = loop.run(backwards, True, n_threads)
    for changed, old in zip(tensors[:2], before[:2], strict=True):
        assert torch.equal(changed[:whole], ~old[:whole])
        assert changed[-1] == old[-1]
    assert all(map(torch.equal, tensors[2:], before[2:]))
    words = torch.cat([t[:whole] for t in before[2:]]).view(torch.int32).numpy()
    assert found == int(np.bitwise_xor.reduce(words.view(np.uint32)))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_memory_loop_over_many_small_tensors(backwards: bool) -> None:
    """More than one thread's task of them, each changed once; those without a whole block are left alone."""
    sizes = [0, 63, 64, 1_000, 4_097] * 200
    memory = torch.zeros(sum(sizes), dtype=torch.int32)
    tensors = memory.split(sizes)
    loop = _C.MemoryLoop([([(t.data_ptr(), t.itemsize)], len(t)) for t in tensors], 1)
    assert loop.run(backwards, True, 2) == 0  # nothing is only read
    for tensor, size in zip(tensors, sizes, strict=True):
        whole = size // 64 * 64
        assert torch.equal(tensor[:whole], torch.full((whole,), -1, dtype=torch.int32))
        assert not tensor[whole:].any()
    assert _C.MemoryLoop([], 1).run(backwards, True, 2) == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
def test_element_loops_ask_for_memory_ahead() -> None:
    """gcc takes a call that does nothing but prefetch for one that does nothing, and drops it in silence."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is not installed")
    listing = subprocess.run(
        [objdump, "-d", _C.__file__], capture_output=True, text=True, check=True
    )
    pairs, halves = len(DTYPES) ** 2, len(HALVES)
    arrays = 2 * len(DTYPES) * (1 + 2)  # reduce without e and with it, for both state dtypes
    arrays += pairs * (3 + 4 + 5) + 3 * halves * len(DTYPES)  # update; the parameter that follows y
    arrays += pairs * (2 + 3 + 4) + 3 * halves * len(DTYPES)  # of what averages nothing
    arrays += len(Move) * (2 * len(DTYPES) + halves)  # interpolate
    arrays += sum(
        3 + split + n_moments for split in (0, 1) for n_moments in (0, 1, 2)
    )  # over 16 bits
    arrays += sum(
        3 + split + n_moments for split in (0, 1) for n_moments in (split ^ 1, 1, 2)
    )  # over 8
    n_isas = len(_C.available_isas())
    assert listing.stdout.count("prefetcht0") >= (arrays + 1) * n_isas  # and the loop for bandwidth


def test_state_of_fewer_bits_has_few_loops() -> None:
    """One for a direction and what is beside the parameter, whatever the gradient's dtype: together they add
    a quarter to the extension at most."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    said = subprocess.run([nm, "-SC", _C.__file__], capture_output=True, text=True, check=True)
    functions = re.findall(r"^\w+ (\w+) t (.*)$", said.stdout, re.MULTILINE)
    if not functions:
        pytest.skip("the extension is stripped")
    small = [
        (name, int(size, 16))
        for size, name in functions
        if re.search(r"_(?:8|16)bit|::(?:update|move)_blocks<", name)
    ]
    per_isa = {
        (isa, loop): sum(
            f"::{isa}::" in name and f"::{loop}<" in name and "cold" not in name
            for name, _ in small
        )
        for isa in _C.available_isas()
        for loop in ("update_8bit", "update_16bit", "move_16bit")
    }
    expected = {"update_8bit": 7, "update_16bit": 11, "move_16bit": 8}
    assert per_isa == {(isa, loop): expected[loop] for isa, loop in per_isa}
    streams = {} if _C.CUDA_MISSING else {stream for stream, _, _ in _C.CUDA_IMAGES.values()}
    images = sum(map(len, streams))
    ours = sum(size for _, size in small)
    assert 0 < ours <= 0.25 * (Path(_C.__file__).stat().st_size - images - ours)
