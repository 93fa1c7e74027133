"""State of 16 bits (``Format.HALF``) in the kernels of each backend: the bits of the eager backend."""

import cuda_on_host
import half_entries
import pytest
import torch
from half_entries import (
    BOTH,
    CPU,
    FLOATS,
    KEPT,
    KERNELS,
    backend_of,
    buffers,
    check_sums,
    eager,
    make_entry,
    make_run,
    updated,
)
from support import assert_same_bits

import sfplus_kernels._C as _C
from sfplus_kernels.backends import cpu
from sfplus_kernels.contract.formats import whole
from sfplus_kernels.contract.layout import Format, GroupCoef, Move, Scalar, TensorCoef

isa, roots_are_correctly_rounded = half_entries.isa, half_entries.roots_are_correctly_rounded
pytestmark = pytest.mark.usefixtures("roots_are_correctly_rounded")
MOVES = [Move.TO_X, Move.TO_Y, Move.SHIFT]


# -- the bits of the eager backend ---------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("dtype", BOTH)
def test_update_has_the_bits_of_eager(
    name: str, dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    results = [
        updated(backend, [make_entry(dtype, grad_dtype=grad_dtype)])
        for backend in (eager(), backend_of(name))
    ]
    assert_same_bits(*results)
    before = buffers(make_entry(dtype))
    assert all(not torch.equal(old, new) for old, new in zip(before, results[0], strict=True))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kept", KEPT[1:])
@pytest.mark.parametrize("dtype", BOTH)
def test_other_directions_have_the_bits_of_eager(name: str, dtype: torch.dtype, kept: str) -> None:
    sizes = [1000] if "e" in kept else [1000, 1, 0, 33]
    results = [
        updated(backend, [make_entry(dtype, n, kept=kept, slot=i) for i, n in enumerate(sizes)])
        for backend in (eager(), backend_of(name))
    ]
    assert_same_bits(*results)
    entry = make_entry(dtype, kept=kept, slot=0)
    assert (entry.format == Format.HALF) == (entry.y_low is not None or kept != "")
    changed = [not torch.equal(a, b) for a, b in zip(buffers(entry), results[0], strict=False)]
    assert all(changed)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", BOTH)
def test_several_tensors_of_any_size(name: str, dtype: torch.dtype) -> None:
    """Empty ones too, whose memory has no address, and as many elements as fill no vector."""
    sizes = [1, 7, 0, 8, 31, 32, 33, 513, 4100]
    results = [
        updated(backend, [make_entry(dtype, n, slot=i) for i, n in enumerate(sizes)])
        for backend in (eager(), backend_of(name))
    ]
    assert_same_bits(*results)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("part", [(123, 1000, 0), (2**32 - 50, 1000, 0), (5, 40, 64), (7, 3, 10)])
def test_random_words_are_of_the_whole_tensor(name: str, part: tuple[int, int, int]) -> None:
    results = [
        updated(backend, [make_entry(torch.float32, part=part)])
        for backend in (eager(), backend_of(name))
    ]
    assert_same_bits(*results)
    assert not torch.equal(results[0][-1], updated(eager(), [make_entry(torch.float32)])[-1])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("dtype", BOTH)
def test_moves_have_the_bits_of_eager(name: str, dtype: torch.dtype, move: Move) -> None:
    """Of a parameter that somebody has written to here and there, too."""
    results = []
    for backend in (eager(), backend_of(name)):
        entry = make_entry(dtype, grad_dtype=None)
        run = make_run()
        if entry.y_low is not None and move != Move.SHIFT:
            entry = entry._replace(y_high=entry.param.clone())
        if entry.y_low is not None and move == Move.TO_Y:
            backend.interpolate(backend.plan([entry], CPU), run, Move.TO_X)
            entry.param[::7] = 0.3
        backend.interpolate(backend.plan([entry], CPU), run, move)
        results.append(buffers(entry))
    assert_same_bits(*results)


@pytest.mark.parametrize("name", KERNELS)
def test_x_and_back_leaves_every_bit_of_y(name: str) -> None:
    backend, run, entry = backend_of(name), make_run(), make_entry(torch.bfloat16, grad_dtype=None)
    before = buffers(entry)
    entry = entry._replace(y_high=entry.param.clone())
    backend.interpolate(backend.plan([entry], CPU), run, Move.TO_X)
    assert not torch.equal(entry.param, before[0])
    assert entry.y_low is not None
    y = whole(before[0], entry.y_low)
    b = run.tensors[entry.slot, Scalar.Y_BETA]
    x = y - (1 - b).float() * entry.displacement.float()
    assert torch.equal(entry.param, x.bfloat16())
    backend.interpolate(backend.plan([entry], CPU), run, Move.TO_Y)
    assert_same_bits(buffers(entry), before)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kept", ["mve", "mv", "m"])
@pytest.mark.parametrize("dtype", BOTH)
def test_what_is_not_finite_has_the_bits_of_eager(name: str, dtype: torch.dtype, kept: str) -> None:
    """e too large for float16 is held at the largest; a NaN is one everywhere; a written zero is zero."""
    special = torch.tensor(
        [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3e38, -3e38, 65520.0, 1e-9]
    )
    results = []
    for backend in (eager(), backend_of(name)):
        run = make_run()
        run.group_coefs[0, GroupCoef.E_KEPT] = 1
        entry = make_entry(dtype, 90, kept=kept)
        entry.param[:36] = special.repeat(4).to(dtype)
        if entry.y_low is not None:
            entry.y_low.view(torch.int16)[:36] = -3
        plan = backend.plan([entry], CPU)
        grad = torch.cat([torch.zeros(45), special.repeat(5)])
        backend.set_gradients(plan, [grad])
        backend.update(plan, run)
        results.append(buffers(entry))
    nans = [[t.isnan() for t in result] for result in results]
    assert_same_bits(*nans)  # any NaN is as good as another
    assert_same_bits(*([t.nan_to_num(7.0) for t in result] for result in results))
    assert results[0][1].isnan().any()
    if "e" in kept:
        assert results[0][3].isnan().any()
        assert results[0][3].abs().nan_to_num().max() == 65504


# -- sums ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("numel", [1, 33, 513, 5000])
def test_sums(name: str, grad_dtype: torch.dtype, numel: int) -> None:
    check_sums(backend_of(name), make_entry(torch.float32, numel, grad_dtype=grad_dtype))


@pytest.mark.parametrize("numel", [1, 31, 32, 1000, 20_000])
def test_sums_of_the_cpu_are_formed_in_the_order_of_full_state(isa: str, numel: int) -> None:
    grad, backend = torch.randn(numel, generator=torch.Generator().manual_seed(1)), cpu.CpuBackend()
    sums = []
    for full in (False, True):
        entry = make_entry(torch.float32, numel)
        if full:
            moments = {"exp_avg": torch.zeros(numel), "exp_avg_sq": torch.zeros(numel)}
            entry = entry._replace(displacement=entry.displacement.float(), **moments)
        plan = backend.plan([entry], CPU)
        backend.set_gradients(plan, [grad])
        sums.append(backend.reduce(plan, with_e=True).clone())
    assert torch.equal(*sums), isa


# -- the same bits, however the work is done: see test_state_of_few_bits.py, too -----------------------


@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("dtype", BOTH)
def test_instruction_sets(isa: str, dtype: torch.dtype, kept: str, grad_dtype: torch.dtype) -> None:
    entries = [
        make_entry(dtype, n, kept=kept, grad_dtype=grad_dtype, seed=n) for n in (1, 100, 1017)
    ]
    ours = updated(cpu.CpuBackend(), [e._replace(slot=i) for i, e in enumerate(entries)])
    before = [
        make_entry(dtype, n, kept=kept, grad_dtype=grad_dtype, seed=n) for n in (1, 100, 1017)
    ]
    theirs = updated(eager(), [e._replace(slot=i) for i, e in enumerate(before)])
    assert_same_bits(ours, theirs)
    for move in MOVES if "e" in kept else []:
        results = []
        for backend in (cpu.CpuBackend(), eager()):
            entry = make_entry(dtype, 999, grad_dtype=None)
            high = None if dtype == torch.float32 or move == Move.SHIFT else entry.param.clone()
            entry = entry._replace(y_high=high)
            entry.param[::3] = 0.125
            backend.interpolate(backend.plan([entry], CPU), make_run(), move)
            results.append(buffers(entry))
        assert_same_bits(*results)
    assert _C.isa() == isa


@pytest.mark.parametrize("kept", KEPT)
def test_a_whole_tensor_is_accessed_in_vectors(kept: str) -> None:
    """16 bytes of 16-bit state at a time; a size that is no multiple of 8 costs its last elements only."""
    on_host = cuda_on_host.module().settings
    backend = cuda_on_host.CudaOnHost()
    entry = make_entry(torch.bfloat16, 1024 + 3, kept=kept, grad_dtype=torch.bfloat16)
    grad = torch.randn(1024 + 3).bfloat16()
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [grad])
    on_host.accesses = {}
    backend.update(plan, make_run())
    found = {("st" if s else "ld", width): n for (s, width), n in on_host.accesses.items()}
    packs, n = 1024 // 8, 2 + len(kept)  # that are written; the gradient is read, too
    few = {("ld", 2): 3 * (n + 1), ("st", 2): 3 * n}
    assert found == {("ld", 16): (n + 1) * packs, ("st", 16): n * packs, **few}


def test_the_mean_of_what_is_stored_is_the_value() -> None:
    """Of one value 2^16 times: within 4 standard errors, for e of any size, and v."""
    numel, backend = 2**16, cpu.CpuBackend()
    for value in (0.1234567, -3.3e-5, 2.345e-7, 1.0, 1000.1):
        entry = make_entry(torch.float32, numel, kept="ve")
        run = make_run()
        run.group_coefs.zero_()
        run.tensor_coefs.zero_()
        run.group_coefs[0, [GroupCoef.EPS, GroupCoef.E_KEPT, GroupCoef.GRAD_TO_V]] = 1
        run.group_coefs[0, GroupCoef.OMEGA] = 1
        run.tensor_coefs[1, TensorCoef.STEP_SIZE] = 0
        for tensor in (entry.param, entry.displacement, entry.exp_avg_sq):
            assert tensor is not None
            tensor.zero_()
        entry.param.fill_(-value)  # delta = omega y, e = -delta
        plan = backend.plan([entry], CPU)
        grad = torch.full((numel,), abs(value) ** 0.5)
        backend.set_gradients(plan, [grad])
        backend.update(plan, run)
        v = torch.full((1,), abs(value) ** 0.5).square()
        for stored, exact in ((entry.displacement, torch.tensor(value)), (entry.exp_avg_sq, v)):
            assert stored is not None
            several = stored.double()
            error = float(several.mean() - exact.double())
            assert abs(error) <= 4 * float(several.std()) / numel**0.5, (value, stored.dtype)
            assert len(several.unique()) <= 2
