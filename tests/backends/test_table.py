"""How tensors become launches and chunks: pure functions, no device."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from support import make_params

from sfplus_kernels.backends.gradient_addresses import bring_gradients
from sfplus_kernels.backends.table import (
    Launch,
    build_table,
    cut_into_chunks,
    same_layout,
)
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS, Chunk, Row


@given(st.lists(st.integers(0, 5000), max_size=20), st.integers(1, 700), st.integers(0, 9))
def test_chunks_cover_every_element_once(numels: list[int], chunk_size: int, first: int) -> None:
    chunks = cut_into_chunks(numels, chunk_size, first)
    covered = [
        (row - first, element)
        for row, start in chunks.tolist()
        for element in range(start, min(start + chunk_size, numels[row - first]))
    ]
    assert covered == [(row, e) for row, numel in enumerate(numels) for e in range(numel)]


def test_chunks_of_huge_tensors_have_64_bit_offsets() -> None:
    chunks = cut_into_chunks([2**40 + 1], 2**30)
    assert chunks.dtype == torch.int64
    assert chunks[-1].tolist() == [0, 2**40]


def test_same_layout_ignores_dimensions_of_size_one() -> None:
    assert same_layout((3, 99, 1), torch.empty(5, 1, 3))
    assert not same_layout((1, 5), torch.empty(5, 3))
    assert same_layout((), torch.empty(()))


def entry(shape: tuple[int, ...], dtype: torch.dtype, grad: torch.dtype | None, slot: int) -> Entry:
    p = make_params([shape], dtype)[0]
    state = [torch.zeros(shape, dtype=torch.float32) for _ in range(4)]
    master = state[3] if dtype != torch.float32 else None
    return Entry(p, *state[:3], master, group=slot % 2, slot=slot, grad_dtype=grad)


def test_one_launch_per_dtype_pair_and_no_chunk_of_an_empty_tensor() -> None:
    f32, b16 = torch.float32, torch.bfloat16
    kinds = [
        ((0,), f32, f32),
        ((5,), f32, f32),
        ((7,), b16, b16),
        ((0, 2), b16, f32),
        ((4, 4), f32, f32),
    ]
    kinds += [((9,), b16, f32), ((3,), f32, f32), ((0,), f32, f32)]
    entries = [entry(*kind, slot) for slot, kind in enumerate(kinds)]
    table = build_table(entries, torch.device("cpu"), chunk_size=4)
    assert [(x.param_dtype, x.grad_dtype) for x in table.launches] == [
        (f32, f32),
        (b16, b16),
        (b16, f32),
    ]
    assert table.order == [1, 4, 6, 2, 5, 0, 3, 7]
    assert table.rows[:, Row.NUMEL].tolist() == [5, 16, 3, 7, 9, 0, 0, 0]
    assert table.rows[:, Row.SLOT].tolist() == table.order
    assert table.rows[:, Row.GROUP].tolist() == [1, 0, 0, 0, 1, 0, 1, 1]
    assert [x.n_chunks for x in table.launches] == [2 + 4 + 1, 2, 3]
    assert [x.first_chunk for x in table.launches] == [0, 7, 9]
    assert table.chunks[:, Chunk.ROW].tolist() == [0] * 2 + [1] * 4 + [2] + [3] * 2 + [4] * 3
    assert table.partials.shape == (12, 3)
    for row, index in enumerate(table.order):
        e = entries[index]
        low = e.master_param is not None
        assert table.rows[row, Row.Y] == e.y.data_ptr()
        assert table.rows[row, Row.PARAM] == (e.param.data_ptr() if low else 0)
        assert table.rows[row, Row.DISPLACEMENT] == e.displacement.data_ptr()


def test_virtual_blocks_are_bounded() -> None:
    few, many = (
        Launch(
            torch.float32,
            None,
            True,
            True,
            True,
            first_chunk=0,
            n_chunks=n,
            n_elements=n,
            first_partial=0,
        )
        for n in (5, 10**6)
    )
    assert few.n_partials == 5
    assert many.n_partials == VIRTUAL_BLOCKS


def test_gradient_addresses() -> None:
    f32 = torch.float32
    entries = [entry((0,), f32, f32, 0), entry((6, 2), f32, f32, 1)]
    table = build_table(entries, torch.device("cpu"), chunk_size=4)
    plain, turned = torch.ones(6, 2), torch.arange(12.0).view(2, 6).t()
    bring_gradients(table, [torch.ones(0), plain], moved=True)
    assert table.order == [1, 0]
    assert table.gradients.tolist() == [plain.data_ptr(), 0]
    for scale, moved in ((1, True), (3, False)):  # the gradient changes where it is
        turned.mul_(scale)
        bring_gradients(table, [torch.ones(0), turned], moved=moved)
        stage = table.grad_stages[0]
        assert table.gradients[0] == stage.data_ptr()
        assert torch.equal(stage, turned)
        assert stage.is_contiguous()
    bring_gradients(table, [torch.ones(0), plain], moved=True)
    assert table.staged_rows == []
