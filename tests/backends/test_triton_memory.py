"""What the Triton compiler makes of the kernels: how they access memory, whole blocks and what is left."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from triton_binary import (
    MEMORY_PASSES,
    Kernels,
    Target,
    finishing,
    named,
    tensor_bits,
    whole_block_accesses,
)

pytest.importorskip("triton")


def test_whole_blocks_are_accessed_in_vectors(kernels: Kernels) -> None:
    for name in named(kernels, *MEMORY_PASSES):
        kernel, (loads, stores) = kernels[name], tensor_bits(name)
        assert kernel.unmasked("ld") == whole_block_accesses(kernel, name, loads), name
        assert kernel.unmasked("st") == whole_block_accesses(kernel, name, stores), name
        assert kernel.scalars("st") == 0, name


def test_a_pass_that_finishes_the_step_accesses_as_wide(kernels: Kernels) -> None:
    """Beside it there are the coefficients, one by one, and the loss."""
    for name in finishing(kernels):
        kernel, (loads, stores) = kernels[name], tensor_bits(name)
        for op, bits in (("ld", loads), ("st", stores)):
            expected = whole_block_accesses(kernel, name, bits)[128]
            assert kernel.unmasked(op)[128] == expected, name


def test_the_usual_update_is_nine_vectors_per_turn(kernels: Kernels) -> None:
    """In figures, not computed as above: a read of y, e, m, v, g and a write of y, e, m, v."""
    for name in {"update fp32 fp32", "update fp64 fp64"} & kernels.keys():
        assert kernels[name].unmasked("ld") == {128: 5}
        assert kernels[name].unmasked("st") == {128: 4}
    assert kernels["update bf16 bf16"].unmasked("ld") == {128: 4, 64: 2}
    assert kernels["update bf16 bf16"].unmasked("st") == {128: 4, 64: 1}
    # 28 bytes per parameter, and 20
    assert kernels["update fp32 fp32 no_momentum"].unmasked("ld") == {128: 4}
    assert kernels["update fp32 fp32 no_momentum"].unmasked("st") == {128: 3}
    assert kernels["update fp32 fp32 sgd"].unmasked("ld") == {128: 3}
    assert kernels["update fp32 fp32 sgd"].unmasked("st") == {128: 2}
    # and where nothing is averaged 28, 20 and 12
    for n_written, direction in enumerate(("sgd", "momentum", "adam"), 1):
        kernel = kernels[f"update fp32 fp32 plain_{direction}"]
        assert (kernel.unmasked("ld"), kernel.unmasked("st")) == (
            {128: n_written + 1},
            {128: n_written},
        )


@pytest.mark.parametrize("name", ["reduce {0} {0}", "update {0} {0}", "interpolate {0} to_x"])
def test_fp64_elements_are_not_loaded_like_scalars(
    kernels: Kernels, target: Target, name: str
) -> None:
    """Both have 64 bits, so they are told apart by the number of loads."""
    if "fp64" not in target.dtypes:
        pytest.skip("compiled by make test-slow")
    double, single = kernels[name.format("fp64")], kernels[name.format("fp32")]
    assert double.scalars("ld") == single.scalars("ld") > 0


def test_what_is_left_is_accessed_element_by_element_under_a_mask(kernels: Kernels) -> None:
    """Ends of tensors, and tensors that are not aligned."""
    for name in named(kernels, *MEMORY_PASSES):
        loads, stores = tensor_bits(name)
        actual = kernels[name].masked("ld")
        turn = actual.total() // len(loads)
        assert turn >= 1, name
        assert actual == Counter(loads * turn), name
        # the sums of reduce are three stores, by one thread
        expected = [64] * 3 if name.startswith("reduce") else stores * turn
        assert kernels[name].masked("st") == Counter(expected), name


def test_offsets_in_tensors_have_64_bits(kernels: Kernels) -> None:
    """Of one figure only the lower half is kept: the length of a chunk, not where it starts."""
    for name in named(kernels, *MEMORY_PASSES):
        halves = set(re.findall(r"cvt\.u32\.u64\s+(%r\d+)", kernels[name].ptx))
        # threads exchange 32 bits at a time
        exchanged = set(re.findall(r"shfl\.sync\S*\s+\S+\s+(%r\d+)", kernels[name].ptx))
        assert len(halves - exchanged) == 1, name


def test_state_of_16_bits_is_accessed_in_vectors(kernels: Kernels) -> None:
    """In figures: 8 elements in 128 bits; beside y of fp32 as many as that has in 128 bits, 4."""
    split = kernels["update_half bf16 bf16"]  # m, v, e, g and both halves of y
    assert (split.unmasked("ld"), split.unmasked("st")) == ({128: 6}, {128: 5})
    whole = kernels["update_half fp32 fp32"]  # y and g; m, v and e
    assert (whole.unmasked("ld"), whole.unmasked("st")) == ({128: 2, 64: 3}, {128: 1, 64: 3})
    assert kernels["interpolate_half bf16 to_x"].unmasked("st") == {128: 1}
    assert kernels["interpolate_half bf16 to_y"].unmasked("st") == {128: 2}
    for name in named(kernels, "update_half", "interpolate_half", "reduce_half"):
        kernel = kernels[name]
        assert kernel.stack == 0 or name.endswith("finishing"), name
        # threads exchange sums alone: elsewhere a vector of one width would be made of another's
        assert (kernel.shared == 0) == (not name.startswith("reduce")), name
        assert kernel.resident_warps >= (16 if name.startswith("update") else 24), name


def test_state_of_8_bits_is_accessed_in_vectors(kernels: Kernels) -> None:
    """In figures: as 16 bits, codes in 64 or 32 bits, and the exponent of a block, a byte by itself."""
    split = kernels[
        "update_quarter bf16 bf16"
    ]  # e, g and the parameter; m, v and what is beside it
    assert (split.unmasked("ld"), split.unmasked("st")) == ({128: 3, 64: 3, 8: 1}, {128: 2, 64: 3})
    whole = kernels["update_quarter fp32 fp32"]  # y and g; e; m and v
    assert whole.unmasked("ld") == {128: 2, 64: 1, 32: 2, 8: 1}
    assert whole.unmasked("st") == {128: 1, 64: 1, 32: 2}
    for name in ("to_x", "to_y"):
        assert kernels[f"interpolate_quarter bf16 {name}"].unmasked("ld")[64] == 1
    for name in [name for name in kernels if "quarter" in name]:
        kernel = kernels[name]
        assert kernel.stack == 0, name
        assert not kernel.local_beside_vectors, name
        # exponents go to the threads of their blocks
        finishing = 8 * kernel.num_warps if name.endswith("finishing") else 0
        assert kernel.shared <= finishing + (64 if name.startswith("update") else 0), name
        assert kernel.resident_warps >= (16 if name.startswith("update") else 24), name
