"""State of 8 bits (``Format.QUARTER``) in the kernels of each backend: the bits of the reference."""

import half_entries
import pytest
import torch
from half_entries import BOTH, CPU, FLOATS, backend_of, check_sums, make_run
from quarter_entries import buffers, expected, make_entry, updated
from support import assert_same_bits

import sfplus_kernels._C as _C
from sfplus_kernels.backends import cpu
from sfplus_kernels.contract.layout import Format, GroupCoef, Move, Scalar, TensorCoef
from sfplus_kernels.reference import state_in_8_bits as reference

isa, roots_are_correctly_rounded = half_entries.isa, half_entries.roots_are_correctly_rounded
pytestmark = pytest.mark.usefixtures("roots_are_correctly_rounded")
KERNELS = ["eager", *half_entries.KERNELS]
KINDS = [(dtype, kept) for dtype in BOTH for kept in ("mve", "ve", "mv")] + [(torch.bfloat16, "e")]
"""Which of m, v and e are kept; what has no v has state of 16 bits, but for bfloat16 parameters with e."""


# -- the bits of the reference -------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize(("dtype", "kept"), KINDS)
def test_update_has_the_bits_of_the_reference(
    name: str, dtype: torch.dtype, kept: str, grad_dtype: torch.dtype
) -> None:
    entry = make_entry(dtype, kept=kept, grad_dtype=grad_dtype)
    assert entry.format == Format.QUARTER
    before, right = buffers(entry), expected([entry])
    result = updated(backend_of(name), [entry])
    assert_same_bits(result, right)
    assert all(not torch.equal(old, new) for old, new in zip(before, result, strict=True))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", BOTH)
def test_several_tensors_of_any_size(name: str, dtype: torch.dtype) -> None:
    """Whole blocks, or none."""
    sizes = [32, 0, 64, 96, 256, 288, 4096, 5120]
    entries = [make_entry(dtype, n, kept=("mve", "mv")[i % 2], slot=i) for i, n in enumerate(sizes)]
    right = expected(entries)
    assert_same_bits(updated(backend_of(name), entries), right)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("part", [(123, 1024, 0), (2**32 - 50, 1024, 0), (5, 32, 64), (7, 96, 100)])
def test_random_words_are_of_the_whole_tensor(name: str, part: tuple[int, int, int]) -> None:
    entry = make_entry(torch.bfloat16, 960, part=part)
    right = expected([entry])
    assert_same_bits(updated(backend_of(name), [entry]), right)
    whole = expected([make_entry(torch.bfloat16, 960)])
    assert all(not torch.equal(right[i], whole[i]) for i in (1, 2, 4, 5))  # all that is rounded so


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("move", [Move.TO_X, Move.TO_Y, Move.SHIFT])
@pytest.mark.parametrize("dtype", BOTH)
def test_moves(name: str, dtype: torch.dtype, move: Move) -> None:
    """Of a parameter that somebody has written to here and there, too; e is never written."""
    if dtype == torch.bfloat16 and move == Move.SHIFT:
        pytest.skip("closure forms refuse it")
    backend, run = backend_of(name), make_run()
    entry = make_entry(dtype, grad_dtype=None)
    b = run.tensors[entry.slot, Scalar.Y_BETA]
    e, before = entry.displacement.float(), buffers(entry)
    by_e = (1 - b).float() * e
    if entry.y_low is None:
        moved = {
            Move.TO_X: entry.param - by_e,
            Move.TO_Y: entry.param + by_e,
            Move.SHIFT: entry.param + run.tensor_coefs[1, TensorCoef.E_TO_Y].float() * e,
        }[move]
        backend.interpolate(backend.plan([entry], CPU), run, move)
        assert_same_bits(buffers(entry), [moved, *before[1:]])
        return
    upper, low = entry.param.clone(), entry.y_low.clone()
    entry = entry._replace(y_high=upper.clone())
    backend.interpolate(backend.plan([entry], CPU), run, Move.TO_X)
    x = (reference.y_of_parts(upper, low) - by_e).bfloat16()
    assert_same_bits(buffers(entry), [x, *before[1:]])
    if move == Move.TO_Y:
        entry.param[::7] = 0.3
        written = entry.param.float() + by_e
        new_upper, new_low = reference.parts_of_y(written, torch.full((len(written),), 0x80))
        is_new = entry.param != x
        backend.interpolate(backend.plan([entry], CPU), run, Move.TO_Y)
        new = [torch.where(is_new, new_upper, upper), torch.where(is_new, new_low, low)]
        assert_same_bits(buffers(entry), [*new, *before[2:]])


@pytest.mark.parametrize("name", KERNELS)
def test_x_and_back_leaves_every_bit_of_y(name: str) -> None:
    backend, run = backend_of(name), make_run()
    entry = make_entry(torch.bfloat16, grad_dtype=None)
    before = buffers(entry)
    entry = entry._replace(y_high=entry.param.clone())
    for move in (Move.TO_X, Move.TO_Y):
        backend.interpolate(backend.plan([entry], CPU), run, move)
    assert_same_bits(buffers(entry), before)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kept", ["mve", "mv"])
@pytest.mark.parametrize("dtype", BOTH)
def test_what_is_not_finite(name: str, dtype: torch.dtype, kept: str) -> None:
    """A NaN shows in y and e; codes have none, and v is held at the largest."""
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3e38, -3e38, 1e-30, 1e-22])
    entry, run = make_entry(dtype, 96, kept=kept), make_run()
    run.group_coefs[0, GroupCoef.E_KEPT] = 1
    entry.param[:36] = special.repeat(4).to(dtype)
    if entry.y_low is not None:
        entry.y_low[:36] = -3
    grads = [torch.cat([torch.zeros(51), special.repeat(5)])]
    right = expected([entry], run, grads)
    result = updated(backend_of(name), [entry], run, grads)
    # of a NaN m the sign is open
    place = -2 if "e" in kept else -1
    codes = result[place], right[place]
    is_nan = torch.zeros(96, dtype=torch.bool)
    is_nan[51:] = grads[0][51:].isnan() | grads[0][51:].isinf()
    for m in codes:
        m[is_nan] &= 0x7F
    for tensors in (result, right):
        tensors[:] = [t.nan_to_num(7.0) if t.is_floating_point() else t for t in tensors]
    assert_same_bits(result, right)
    assert entry.param.isnan().any()
    assert entry.displacement is None or entry.displacement.isnan().any()


# -- sums ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", BOTH)
def test_sums(name: str, dtype: torch.dtype) -> None:
    check_sums(backend_of(name), make_entry(dtype, 4128))


# -- the same bits, however the work is done: see test_state_of_few_bits.py, too -----------------------


@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize(("dtype", "kept"), KINDS)
def test_instruction_sets(isa: str, dtype: torch.dtype, kept: str, grad_dtype: torch.dtype) -> None:
    entries = [
        make_entry(dtype, n, kept=kept, grad_dtype=grad_dtype, seed=n, slot=i)
        for i, n in enumerate((288, 8192))
    ]
    right = expected(entries)
    assert_same_bits(updated(cpu.CpuBackend(), entries), right)
    assert _C.isa() == isa


def test_many_steps_on_every_instruction_set() -> None:
    """What one step leaves the next one begins with: 200 of them."""
    before, results = _C.isa(), []
    try:
        for name in _C.available_isas():
            _C.set_isa(name)
            entry, run = make_entry(torch.bfloat16), make_run()
            run.group_coefs[0, :8] = torch.tensor([0.9, 0.1, 0.95, 0.05, 1e-8, 1e-3, 0.99, -0.02])
            run.tensor_coefs[1] = torch.tensor([1e-3, 1.0, 0.01, 1.0])
            generator = torch.Generator().manual_seed(1)
            backend = cpu.CpuBackend()
            plan = backend.plan([entry], CPU)
            for _ in range(200):
                run.tensors[:, Scalar.STEP] += 1
                grads = [torch.randn(1024, generator=generator)]
                backend.set_gradients(plan, grads)
                backend.update(plan, run)
            results.append(buffers(entry))
    finally:
        _C.set_isa(before)
    assert len(results) >= 1
    for other in results:
        assert_same_bits(results[0], other)
    assert all(t.float().isfinite().all() for t in results[0])
