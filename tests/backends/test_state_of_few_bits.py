"""What holds for state of 16 and of 8 bits alike: the same bits, however the work is done."""

from typing import Any

import half_entries
import pytest
import quarter_entries
import torch
from half_entries import BOTH, KERNELS, ON_HOST, backend_of, make_run
from support import assert_same_bits

from sfplus_kernels.backends import cpu

roots_are_correctly_rounded = half_entries.roots_are_correctly_rounded
pytestmark = pytest.mark.usefixtures("roots_are_correctly_rounded")


@pytest.mark.parametrize(
    ("of", "numel", "part"),
    [
        pytest.param(half_entries, 150_000, None, id="16bit"),
        pytest.param(half_entries, 150_000, (11, 999, 2000), id="16bit, a part"),
        pytest.param(quarter_entries, 153_600, None, id="8bit"),
        pytest.param(quarter_entries, 153_600, (11, 960, 2000), id="8bit, a part"),
    ],
)
@pytest.mark.parametrize("dtype", BOTH)
def test_threads_and_chunks(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    of: Any,
    numel: int,
    part: tuple[int, int, int] | None,
) -> None:
    results, threads = [], torch.get_num_threads()
    try:
        for n_threads, chunk_size in ((1, 512), (2, 16384), (7, 1024), (3, 65536)):
            torch.set_num_threads(n_threads)
            monkeypatch.setattr(cpu, "CHUNK_SIZE", chunk_size)
            entry = of.make_entry(dtype, numel, part=part)
            results.append(of.updated(cpu.CpuBackend(), [entry]))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.parametrize("name", ["cpu", ON_HOST])
@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("kept", ["mve", "mv"])
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(
    ("of", "numel"),
    [pytest.param(half_entries, 300, id="16bit"), pytest.param(quarter_entries, 288, id="8bit")],
)
def test_memory_of_any_alignment(
    name: str, of: Any, numel: int, dtype: torch.dtype, kept: str, offset: int
) -> None:
    results = [
        of.updated(backend_of(name), [of.make_entry(dtype, numel, kept=kept, offset=o)])
        for o in (0, offset)
    ]
    assert_same_bits(*results)


@pytest.mark.parametrize("name", ["eager", *KERNELS])
@pytest.mark.parametrize("of", [half_entries, quarter_entries], ids=["16bit", "8bit"])
def test_a_skipped_step_writes_nothing(name: str, of: Any) -> None:
    run, entry = make_run(), of.make_entry(torch.bfloat16)
    run.globals[7] = 1
    before = of.buffers(entry)
    assert_same_bits(of.updated(backend_of(name), [entry], run), before)
