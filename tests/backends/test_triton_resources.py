"""What the Triton compiler makes of the kernels: registers, shared memory, atomics, and how many fit."""

from __future__ import annotations

import re

import pytest
from triton_binary import MEMORY_PASSES, WARPS_PER_SM, Kernels, finishing, named, tensor_bits

pytest.importorskip("triton")


def test_registers_do_not_spill(kernels: Kernels) -> None:
    for name in named(kernels, *MEMORY_PASSES, "finalize_tensors"):
        assert kernels[name].stack == 0, name
    # one program, that waits for its loads; a compiler that saves registers there spills one of them
    assert kernels["finalize"].stack <= 32


def test_what_finishes_the_step_takes_nothing_from_the_memory_pass(kernels: Kernels) -> None:
    """80 registers leave room for 24 warps. What that does not hold is kept in local memory, in the one
    program that finishes the step: not where tensors are accessed."""
    for name in finishing(kernels):
        kernel = kernels[name]
        loads, _ = tensor_bits(name)
        assert kernel.registers <= 80, name
        assert kernel.stack <= 128, name
        assert not kernel.local_beside_vectors, name
        in_flight = kernel.resident_warps * 32 * kernel.elements_per_thread * sum(loads) // 8
        # reduce of gradients of 16 bits, or of such an e too, has fewer bytes for as many registers
        least = 24_000 if "half" in name else 36_000 if name.startswith("reduce") else 40_000
        if "fp64" in name:  # for tests and small models
            least = 30_000
        assert in_flight >= least, (name, in_flight)


def test_tickets_are_the_only_atomics(kernels: Kernels) -> None:
    """One in reduce: its last program has all the sums. Four in a whole step: who is first, its mark, those
    that wait for the mark, and who has seen it last."""
    order = {"relaxed": 0, "acquire": 1, "release": 2, "acq_rel": 3}
    for name, kernel in kernels.items():
        found = sorted(order[a] for a in re.findall(r"\batom\.global(?:\.gpu)?\.(\w+)", kernel.ptx))
        expected = [3] if name.startswith("reduce") else [0, 0, 1, 2]
        assert found == (expected if name.endswith("finishing") else []), name
        assert not re.findall(r"^\s*(?:@\S+\s+)?red\.", kernel.ptx, re.MULTILINE), name


def test_occupancy(kernels: Kernels) -> None:
    """Registers leave room for the warps, and for the reads under way, that a GPU needs.

    By Little's law a multiprocessor must wait for bandwidth x latency at once: on the fastest of these
    GPUs (8 TB/s, 148 multiprocessors, 0.7 us) for 38 kB. The look at gradients alone, an option, has too few
    bytes per register for that.
    """
    for name in named(kernels, *MEMORY_PASSES):
        kernel = kernels[name]
        loads, _ = tensor_bits(name)
        bytes_per_thread = kernel.elements_per_thread * sum(loads) // 8
        if not name.endswith("gradients_only"):
            assert kernel.resident_warps * 32 * bytes_per_thread >= 40_000, name
        # half of the warps is 64 registers; 80 of them, three blocks of update, for rounding to
        # another dtype and for fp64
        larger = name.startswith(("update fp64", "update bf16", "update fp16"))
        share = 3 / 8 if larger else 1 / 2
        assert kernel.resident_warps >= share * WARPS_PER_SM, (name, kernel.registers)
    for name in ("finalize", "finalize_tensors"):  # one block at a time is enough, but it must fit
        assert kernels[name].resident_warps >= kernels[name].num_warps


def test_threads_exchange_nothing_but_sums(kernels: Kernels) -> None:
    """Shared memory elsewhere would be a change of layout, with barriers in the loop."""
    for name in named(kernels, "update", "interpolate"):
        assert kernels[name].shared == 0, name
        assert "bar.sync" not in kernels[name].ptx, name
    assert kernels["finalize_tensors"].shared == 0
    for name in named(kernels, "reduce", "finalize"):
        one_figure_per_warp = 8 * kernels[name].num_warps
        assert 0 < kernels[name].shared <= 3 * one_figure_per_warp, name
