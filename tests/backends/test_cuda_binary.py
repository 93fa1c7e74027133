"""What nvcc made of the CUDA kernels: registers, spills, the width of memory accesses, rounding.

Read from the built extension. ``make test`` builds it for the default architectures where nvcc can be had.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter

import cuda_binary
import pytest
from cuda_binary import BITS, Kernel, architectures, kernels

import sfplus_kernels._C as _C

pytestmark = [
    pytest.mark.skipif(bool(_C.CUDA_MISSING), reason=f"no CUDA kernels: {_C.CUDA_MISSING}"),
    pytest.mark.skipif(
        cuda_binary.cuobjdump() is None or shutil.which("c++filt") is None,
        reason="needs cuobjdump, which Triton brings, and c++filt, which comes with g++",
    ),
]
DEFAULT = ["sm_80", "sm_90", "sm_100", "sm_120"]
LOOKED_INTO = "sm_90"


@pytest.fixture(params=DEFAULT)
def arch(request: pytest.FixtureRequest) -> str:
    if request.param not in architectures():
        chosen = [os.environ.get(v) for v in ("CMAKE_CUDA_ARCHITECTURES", "TORCH_CUDA_ARCH_LIST")]
        assert any(chosen), f"{request.param} is among the defaults"
        pytest.skip(f"the extension was built for {sorted(architectures())}")
    return str(request.param)


@pytest.fixture
def disassembled() -> dict[str, Kernel]:
    if LOOKED_INTO not in architectures():
        pytest.skip(f"the extension was built for {sorted(architectures())}")
    return kernels(LOOKED_INTO, with_sass=True)


def test_every_kernel_is_there(arch: str) -> None:
    expected = {"finalize", "finalize_tensors"}
    for grad in BITS:
        for state in ("fp64", "fp32"):
            expected |= {f"reduce {state} {grad}", f"reduce g only {state} {grad}"}
        for direction in cuda_binary.DIRECTIONS:
            expected |= {f"update {direction} {param} {grad}" for param in BITS}
    expected |= {f"interpolate {param} {move}" for param in BITS for move in cuda_binary.MOVES}
    assert set(kernels(arch)) == expected


def test_nothing_spills(arch: str) -> None:
    spilling = {k.label: k for k in kernels(arch).values() if k.stack or k.local}
    assert not spilling


def test_registers_leave_room_for_enough_loads_in_flight(arch: str) -> None:
    """By Little's law an H200 needs about 32 kB per multiprocessor; 48 kB is what tuned kernels keep."""
    for kernel in kernels(arch).values():
        if not kernel.is_memory_pass:
            assert kernel.registers <= 80, kernel.label  # a block of 256 threads fits thrice
            continue
        copy = kernel.name == "interpolate" and len(kernel.element_bits[0]) == 1
        # fp64 is for tests and small models; conversions to fp16 take many registers
        least = 40_000 if copy or "fp16" in kernel.arguments else 48_000
        least = 20_000 if "fp64" in kernel.arguments else least
        assert kernel.bytes_in_flight >= least, (kernel.label, kernel.registers)


def expected_accesses(kernel: Kernel, bits: list[int]) -> Counter[int]:
    """One turn of the loop over packs (and one over what is left of them), and single elements."""
    copies = kernel.turns + (kernel.turns > 1)
    expected: Counter[int] = Counter(bits)
    for width in bits:
        access = min(128, kernel.pack * width)
        expected[access] += copies * kernel.pack * width // access
    return expected


def test_whole_packs_are_accessed_in_vectors(disassembled: dict[str, Kernel]) -> None:
    for kernel in disassembled.values():
        if not kernel.is_memory_pass:
            continue
        loads, stores = kernel.element_bits
        # tensors are told from tables by their hint: read once, or read only
        hint = "CONSTANT" if kernel.name.startswith("reduce") else "EF"
        assert kernel.accesses("LDG", hint) == expected_accesses(kernel, loads), kernel.label
        sums = Counter({64: 3}) if kernel.name.startswith("reduce") else Counter()
        assert kernel.accesses("STG") == expected_accesses(kernel, stores) + sums, kernel.label


def test_the_usual_update_is_nine_vectors(disassembled: dict[str, Kernel]) -> None:
    """In figures, not computed as above: a read of y, e, m, v, g and a write of y, e, m, v."""
    kernel = disassembled["update adam fp32 fp32"]
    assert kernel.accesses("LDG", "EF") == {128: 5, 32: 5}
    assert kernel.accesses("STG") == {128: 4, 32: 4}
    # y is what the next forward pass reads: no hint to drop it from the cache
    assert kernel.accesses("STG", "EF") == {128: 3, 32: 3}


def test_no_atomics_and_no_local_memory(disassembled: dict[str, Kernel]) -> None:
    """Sums are formed in an order; register arrays have known indices."""
    for kernel in disassembled.values():
        opcodes = set(re.findall(r"\*/\s+(?:@!?\w+ )?(\w+)", kernel.sass))
        assert "EXIT" in opcodes
        assert not opcodes & {"ATOM", "ATOMG", "ATOMS", "RED", "LDL", "STL"}, kernel.label


def test_threads_of_a_memory_pass_do_not_wait_for_one_another(
    disassembled: dict[str, Kernel],
) -> None:
    for kernel in disassembled.values():
        if kernel.name.startswith(("update", "interpolate")):
            assert "BAR.SYNC" not in kernel.sass, kernel.label
            assert not re.findall(r"\b(?:LDS|STS)\b", kernel.sass), kernel.label


def test_update_of_fp32_computes_in_fp32(disassembled: dict[str, Kernel]) -> None:
    """Many GPUs have few fp64 units: there is one conversion per coefficient, or gradient."""
    for kernel in disassembled.values():
        if kernel.name.startswith("update") and "fp64" not in kernel.arguments:
            assert not re.findall(r"\bD(?:ADD|MUL|FMA)\b", kernel.sass), kernel.label


def test_roots_and_quotients_are_correctly_rounded() -> None:
    """In the PTX, for GPUs to come: machine code has subroutines for them."""
    ptx = cuda_binary.dump("-ptx")
    operations = set(re.findall(r"\b(?:r?sqrt|div|rcp)\.[\w.]*f(?:32|64)\b", ptx))
    if not operations:
        pytest.skip("the extension was built without PTX")
    operations.discard("rcp.approx.ftz.f64")  # where the library's own division in fp64 begins
    assert operations <= {"sqrt.rn.f32", "sqrt.rn.f64", "div.rn.f32", "div.rn.f64", "rcp.rn.f64"}
    assert {"sqrt.rn.f32", "div.rn.f32"} <= operations
    assert not re.findall(r"\.ftz\.f32\b", ptx)


def test_the_runtime_is_inside_and_hidden() -> None:
    """torch brings a CUDA runtime of its own: neither must find the other's functions."""
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("needs nm and readelf")

    def said(*command: str) -> str:
        done = subprocess.run(
            [*command, str(_C.__file__)], check=True, capture_output=True, text=True
        )
        return done.stdout

    assert not re.findall(r"NEEDED.*(?:cuda|torch|c10)", said("readelf", "-d"))
    assert not re.findall(r" cuda\w+$", said("nm", "-D"), re.MULTILINE)
