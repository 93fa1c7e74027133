"""What the compiler made of the CUDA kernels: registers, spills, the width of memory accesses, rounding.

Read from the built extension. ``make test`` builds it for the default architectures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter

import cuda_binary
import pytest
from cuda_binary import Kernel, architectures, kernels

import sfplus_kernels._C as _C
from sfplus_kernels.backends.machine_code import unpacked
from sfplus_kernels.contract.layout import Drift

pytestmark = [
    pytest.mark.skipif(bool(_C.CUDA_MISSING), reason=f"no CUDA kernels: {_C.CUDA_MISSING}"),
    pytest.mark.skipif(
        cuda_binary.cuobjdump() is None, reason="needs cuobjdump, which Triton brings"
    ),
]
DEFAULT = ["sm_70", "sm_80", "sm_90", "sm_100", "sm_120"]
LOOKED_INTO = "sm_90"


@pytest.fixture(params=DEFAULT)
def arch(request: pytest.FixtureRequest) -> str:
    if request.param not in architectures():
        chosen = [os.environ.get(v) for v in ("CMAKE_CUDA_ARCHITECTURES", "TORCH_CUDA_ARCH_LIST")]
        older = request.param == "sm_70" and "13." in _C.CUDA_COMPILER  # which does not know it
        assert older or any(chosen), f"{request.param} is among the defaults"
        pytest.skip(f"the extension was built for {sorted(architectures())}")
    return str(request.param)


@pytest.fixture
def disassembled() -> dict[str, Kernel]:
    if LOOKED_INTO not in architectures():
        pytest.skip(f"the extension was built for {sorted(architectures())}")
    return kernels(LOOKED_INTO, with_sass=True)


def test_every_kernel_is_there(arch: str) -> None:
    listing = cuda_binary.dump(arch, "--dump-resource-usage")
    assert set(re.findall(r"Function (\w+):", listing)) == set(_C.CUDA_KERNELS)
    assert len(_C.CUDA_KERNELS) == 188


def test_the_ptx_for_later_gpus_has_every_kernel_too() -> None:
    ptx = [name for name in _C.CUDA_IMAGES if name.startswith("compute_")]
    if not ptx:
        pytest.skip("the extension was built without PTX")
    text = unpacked(_C.CUDA_IMAGES[ptx[0]])
    assert text.endswith(b"\0")  # the driver takes a string
    assert set(re.findall(r"\.entry (\w+)", text.decode())) == set(_C.CUDA_KERNELS)


def test_nothing_spills(arch: str) -> None:
    """But a few bytes, on some GPUs, in what the one block does that finishes a step."""
    few = {70: 24, 90: 0, 100: 0, 120: 24}.get(int(arch[3:]), 16)
    for kernel in kernels(arch).values():
        finishes = kernel.name == "finalize" or kernel.name.startswith("step")
        assert kernel.stack <= (few if finishes else 0), kernel
        assert kernel.local == 0, kernel


def test_registers_leave_room_for_enough_loads_in_flight(arch: str) -> None:
    """By Little's law an H200 needs about 32 kB per multiprocessor; 48 kB is what tuned kernels keep."""
    for kernel in kernels(arch).values():
        if not kernel.is_memory_pass:
            assert kernel.registers <= 96, kernel.label  # of one block there is room for all
            continue
        copy = kernel.name == "interpolate" and len(kernel.element_bits[0]) == 1
        # fp64 is for tests and small models; conversions to fp16 take many registers
        least = 40_000 if copy or "fp16" in kernel.arguments else 48_000
        # registers of reduce are also for what its last block does
        least = 40_000 if kernel.name == "reduce" and "bf16" in kernel.arguments else least
        # a whole step keeps registers for what its first block does
        least = 32_000 if kernel.name.startswith("step") else least
        # with no moments there are few bytes for an element
        least = 40_000 if kernel.is_half and "adam" not in kernel.name else least
        # and codes of 8 bits are fewer yet
        least = 32_000 if kernel.is_quarter else least
        # without e 7 bytes, and from sm_100 on four blocks of a multiprocessor
        least = 28_000 if kernel.is_quarter and "plain" in kernel.name else least
        # what it reads, update has just written: most of it is in the L2 cache
        least = 20_000 if "fp64" in kernel.arguments or kernel.is_project else least
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
        # the exponent of a block, once beside packs and once beside elements
        exponents = Counter({8: 2} if kernel.has_exponents else {})
        # tensors are told from tables by their hint: read once, or read only
        hint = "CONSTANT" if kernel.name.startswith("reduce") else "EF"
        expected = expected_accesses(kernel, loads) + exponents
        assert kernel.accesses("LDG", hint) == expected, kernel.label
        if kernel.name.startswith(("update", "interpolate", "project")):
            # others write coefficients too
            expected = expected_accesses(kernel, stores) + exponents + slots_of(kernel)
            assert kernel.accesses("STG") == expected, kernel.label


def slots_of(kernel: Kernel) -> Counter[int]:
    """What a drift monitor's sums are written with, once for a chunk, where there is one."""
    return Counter({64: len(Drift)} if kernel.is_watched else {})


def test_the_usual_update_is_nine_vectors(disassembled: dict[str, Kernel]) -> None:
    """In figures, not computed as above: a read of y, e, m, v, g and a write of y, e, m, v."""
    kernel = disassembled["update adam fp32 fp32"]
    assert kernel.accesses("LDG", "EF") == {128: 5, 32: 5}
    assert kernel.accesses("STG") == Counter({128: 4, 32: 4}) + slots_of(kernel)
    # y is what the next forward pass reads: no hint to drop it from the cache
    assert kernel.accesses("STG", "EF") == {128: 3, 32: 3}


def test_an_update_without_averaging_is_seven_vectors(disassembled: dict[str, Kernel]) -> None:
    """A read of y, m, v, g and a write of y, m, v: 28 bytes for an element, as torch's own fused AdamW."""
    kernel = disassembled["update plain adam fp32 fp32"]
    assert kernel.accesses("LDG", "EF") == {128: 4, 32: 4}
    assert kernel.accesses("STG") == Counter({128: 3, 32: 3}) + slots_of(kernel)


def test_the_usual_update_of_half_is_eleven_vectors(disassembled: dict[str, Kernel]) -> None:
    """Of 8 elements, 16 bytes each: m, v, e, both halves of y and g are read, and all but g written."""
    kernel = disassembled["update half adam bf16 bf16"]
    assert kernel.accesses("LDG", "EF") == {128: 6, 16: 6}
    assert kernel.accesses("STG") == Counter({128: 5, 16: 5}) + slots_of(kernel)
    assert kernel.accesses("STG", "EF") == {128: 4, 16: 4}


def test_the_usual_update_of_quarter_has_codes_of_8_bytes(disassembled: dict[str, Kernel]) -> None:
    """Of 8 elements: 16 bytes of e, g and the parameter, 8 of m, v and the rest of y; an exponent for 32."""
    kernel = disassembled["update quarter adam bf16 bf16"]
    assert kernel.accesses("LDG", "EF") == {128: 3, 64: 3, 16: 3, 8: 5}
    assert kernel.accesses("STG") == Counter({128: 2, 64: 3, 16: 2, 8: 5}) + slots_of(kernel)


def opcodes(kernel: Kernel) -> Counter[str]:
    return Counter(re.findall(r"\*/\s+(?:@!?\w+ )?(\w+)", kernel.sass))


def test_no_atomics_but_tickets_and_no_local_memory(disassembled: dict[str, Kernel]) -> None:
    """Sums are formed in an order; register arrays have known indices. Which block finishes a step is found
    by one counter in reduce, and by one more, of those that have seen it done, in a whole step."""
    for kernel in disassembled.values():
        found = opcodes(kernel)
        assert found["EXIT"]
        tickets = (
            1 if kernel.name.startswith("reduce") else 2 if kernel.name.startswith("step") else 0
        )
        assert found["ATOMG"] + found["ATOM"] == tickets, kernel.label
        assert not set(found) & {"ATOMS", "RED", "LDL", "STL"}, kernel.label


def test_threads_of_a_memory_pass_do_not_wait_for_one_another(
    disassembled: dict[str, Kernel],
) -> None:
    for kernel in disassembled.values():
        if kernel.name.startswith(("update", "interpolate")):
            assert "BAR.SYNC" not in kernel.sass, kernel.label
            # but for its own sums, while somebody monitors, a thread has no shared memory
            own = bool(re.findall(r"\b(?:LDS|STS)\b", kernel.sass))
            assert own == kernel.keeps_sums_in_memory, kernel.label


def test_a_kernel_that_begins_early_waits_for_the_one_before(
    disassembled: dict[str, Kernel],
) -> None:
    """Those that are launched with the right to: see csrc/cuda/order.cuh."""
    for kernel in disassembled.values():
        waits = "ACQBULK" in kernel.sass
        assert waits == (kernel.is_update or kernel.name.startswith("finalize")), kernel.label


@pytest.mark.parametrize(
    ("label", "registers"),
    [
        ("reduce fp32 fp32", 72),
        ("reduce g only fp32 bf16", 72),
        ("update adam fp32 fp32", 72),
        ("update adam bf16 bf16", 80),
        ("update no momentum fp32 fp32", 72),
        ("update sgd fp32 fp32", 72),
        ("update plain adam fp32 fp32", 72),
        ("update plain adam bf16 bf16", 80),
        ("update plain momentum fp32 fp32", 72),
        ("step no momentum fp32 fp32", 80),
        ("step adam bf16 bf16", 96),
        ("interpolate fp32 to_x", 64),
        ("reduce half fp32 bf16", 72),
        ("update half adam fp32 fp32", 128),
        ("update half adam bf16 bf16", 128),
        ("update half plain adam fp32 fp32", 96),
        ("update half plain adam bf16 bf16", 96),
        ("update half plain momentum fp32 fp32", 72),
        ("interpolate half bf16 to_x", 64),
        ("update quarter adam fp32 fp32", 128),
        ("update quarter adam bf16 bf16", 128),
        ("update quarter plain adam bf16 bf16", 128),
        ("interpolate quarter bf16 to_y", 64),
        ("interpolate bf16 to_x", 64),
        ("interpolate fp16 to_y", 64),
        ("interpolate fp16 absorb_z", 64),
    ],
)
def test_registers_of_the_usual_kernels(arch: str, label: str, registers: int) -> None:
    """In figures: what the launch bounds leave, so that 28, 24 or 20 warps of a multiprocessor have work."""
    kernel = kernels(arch)[label]
    if label == "update adam bf16 bf16" and int(arch[3:]) >= 100:
        registers = 96
    assert kernel.registers <= registers
    assert kernel.resident_warps >= 65536 // (registers * 32) // 4 * 4


def test_update_of_fp32_computes_in_fp32(disassembled: dict[str, Kernel]) -> None:
    """Many GPUs have few fp64 units: there is one conversion per coefficient, or gradient."""
    for kernel in disassembled.values():
        # in a whole step one block forms the coefficients too
        if kernel.name.startswith("update") and "fp64" not in kernel.arguments:
            assert not re.findall(r"\bD(?:ADD|MUL|FMA)\b", kernel.sass), kernel.label


def test_roots_and_quotients_are_correctly_rounded() -> None:
    """In the PTX, for GPUs to come: machine code has subroutines for them."""
    ptx = "".join(
        unpacked(image).decode()
        for name, image in _C.CUDA_IMAGES.items()
        if name.startswith("compute_")
    )
    operations = set(re.findall(r"\b(?:r?sqrt|div|rcp)\.[\w.]*f(?:32|64)\b", ptx))
    if not operations:
        pytest.skip("the extension was built without PTX")
    operations.discard("rcp.approx.ftz.f64")  # where the library's own division in fp64 begins
    assert operations <= {"sqrt.rn.f32", "sqrt.rn.f64", "div.rn.f32", "div.rn.f64", "rcp.rn.f64"}
    assert {"sqrt.rn.f32", "div.rn.f32"} <= operations
    assert not re.findall(r"\.ftz\.f32\b", ptx)


def test_no_cuda_library_is_needed_or_shown() -> None:
    """The driver's is looked for when it is used; torch's runtime must find nothing of ours."""
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("needs nm and readelf")

    def said(*command: str) -> str:
        done = subprocess.run(
            [*command, str(_C.__file__)], check=True, capture_output=True, text=True
        )
        return done.stdout

    assert not re.findall(r"NEEDED.*(?:cuda|torch|c10)", said("readelf", "-d"))
    assert not re.findall(r" cu[A-Z]\w+$| cuda\w+$", said("nm", "-D"), re.MULTILINE)
