"""What the Triton compiler makes of the kernels, on machines without a GPU too: the width of memory
accesses, the rounding of the arithmetic, registers, shared memory, and what is compiled in.

Every kernel is compiled for three generations of GPUs; for one of them with every pair of dtypes. The first
is for ``make test``, the others for ``make test-slow``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sfplus_kernels.contract.layout import Move

pytest.importorskip("triton")
ARCHITECTURES = [80, 90, 100]
EVERY_PAIR = 90
"""The architecture whose gradients have every dtype and for which the rarer passes are compiled; elsewhere
gradients have the parameter's."""

BITS = {"fp64": 64, "fp32": 32, "bf16": 16, "fp16": 16}
HALVES = ["bf16", "fp16"]
MEMORY_PASSES = ("reduce", "update", "interpolate")

REGISTERS_PER_SM = 65536
WARPS_PER_SM = 64
"""Of all three architectures."""

ACCESS = re.compile(
    r"(?P<predicate>@!?%p\d+\s+)?(?P<op>ld|st)\.global(?:[.:][A-Z]\w*|\.[a-z]\w*?)*?"
    r"(?:\.v(?P<vector>\d))?\.[bfsu](?P<bits>\d+)\s"
)
"""``@%p1 ld.global.L1::evict_last.v4.b32 {``: a predicate is a mask, its absence is none."""


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel; what ``triton_ahead_of_time.py`` prints about it."""

    ptx: str = field(repr=False)
    registers: int
    stack: int
    local_beside_vectors: bool
    shared: int
    num_warps: int
    block_size: int
    constants: list[str]
    specialized_integers: list[str]
    warnings: list[str]
    same_for_any_model: bool

    def _accesses(self, op: str) -> Iterator[tuple[bool, bool, int]]:
        """Of each ``ld`` or ``st`` of global memory: masked, vector, number of bits."""
        for access in ACCESS.finditer(self.ptx):
            if access["op"] == op:
                bits = int(access["bits"]) * int(access["vector"] or 1)
                yield access["predicate"] is not None, access["vector"] is not None, bits

    def unmasked(self, op: str) -> Counter[int]:
        """Accesses of whole blocks, by bits: all but ``scalars``, those that are too narrow too."""
        found = self._accesses(op)
        return Counter(
            bits for masked, vector, bits in found if not masked and (vector or bits != 64)
        )

    def scalars(self, op: str) -> int:
        """Accesses of 64 bits that no thread takes a share in: entries of tables, coefficients."""
        return sum(access == (False, False, 64) for access in self._accesses(op))

    def masked(self, op: str) -> Counter[int]:
        """Accesses of what is left, by bits."""
        return Counter(bits for masked, _, bits in self._accesses(op) if masked)

    @property
    def resident_warps(self) -> int:
        """Per multiprocessor, as far as registers limit them: threads get them by the eight."""
        per_block = -(-self.registers // 8) * 8 * 32 * self.num_warps
        return REGISTERS_PER_SM // per_block * self.num_warps

    @property
    def elements_per_thread(self) -> int:
        """Of each tensor, in one turn of the loop over whole blocks."""
        return self.block_size // (32 * self.num_warps)


Kernels = dict[str, Kernel]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Kernels]:
    """All kernels of an architecture by name, compiled when they are first asked for."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    program = Path(__file__).with_name("triton_ahead_of_time.py")

    @cache
    def compile_for(arch: int) -> Kernels:
        done = subprocess.run(
            [sys.executable, str(program), str(arch), *(["--every-pair"] * (arch == EVERY_PAIR))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        kernels: dict[str, Any] = json.loads(done.stdout)
        return {name: Kernel(**figures) for name, figures in kernels.items()}

    return compile_for


@pytest.fixture(
    params=[
        pytest.param(arch, marks=[] if arch == ARCHITECTURES[0] else pytest.mark.slow)
        for arch in ARCHITECTURES
    ],
    ids=[f"sm_{arch}" for arch in ARCHITECTURES],
)
def arch(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def kernels(compiled: Callable[[int], Kernels], arch: int) -> Kernels:
    return compiled(arch)


def named(kernels: Kernels, *passes: str) -> list[str]:
    """Names of the kernels of some passes: ``update bf16 fp32``, ``update fp32 fp32 sgd``."""
    return [n for n in kernels if n.split()[0] in passes and n not in finishing(kernels)]


def finishing(kernels: Kernels) -> list[str]:
    """Those of a memory pass in which one program forms the coefficients too."""
    return [name for name in kernels if name.endswith("finishing") and "quarter" not in name]


def state_bits(param: str) -> int:
    return 64 if param == "fp64" else 32


def tensor_bits(name: str) -> tuple[list[int], list[int]]:
    """Bits of an element of each tensor that the kernel reads, and of each that it writes."""
    kernel, param, other, *direction = name.removesuffix(" finishing").split()
    state = state_bits(param)
    own = [BITS[param]] if param in HALVES else []  # a parameter that is not y itself
    if kernel == "reduce_half":
        return [16, BITS[other]], []
    if kernel == "reduce":
        # e, g; the sums are no tensors
        return [BITS[other]] if direction else [state, BITS[other]], []
    if kernel == "update":
        # y, e, m, v (without momentum no m, with SGD neither m nor v), and g; the parameter
        counts = {"": 4, "no_momentum": 3, "sgd": 2}
        # the same without e
        counts |= {"plain_adam": 3, "plain_momentum": 2, "plain_sgd": 1}
        n_state = counts["".join(direction)]
        return [state] * n_state + [BITS[other]] + own, [state] * n_state + own
    # interpolate: y and e, and the parameter where it is not y itself
    changed = {"expose_z": 2, "absorb_z": 2}.get(other, 1)  # e too
    return [state] * 2 + own, [state] * changed + own


def whole_block_accesses(kernel: Kernel, name: str, bits: list[int]) -> Counter[int]:
    """128 bits of state at a time; of all else as many elements, again at most 128 bits."""
    elements_at_once = 8 if "half" in name else 128 // state_bits(name.split()[1])
    expected: Counter[int] = Counter()
    for width in bits:
        access = min(128, elements_at_once * width)
        expected[access] += kernel.elements_per_thread * width // access
    return expected


def test_every_kernel_is_compiled_for_its_architecture(kernels: Kernels, arch: int) -> None:
    expected = {"finalize", "finalize_tensors"}
    for param in BITS:
        state = "fp64" if param == "fp64" else "fp32"
        for grad in BITS if arch == EVERY_PAIR else [param]:
            expected |= {f"reduce {state} {grad} finishing", f"update {param} {grad}"}
            if arch == EVERY_PAIR:
                expected.add(f"reduce {state} {grad} gradients_only")
        expected |= {f"reduce {state} {param}", f"update {param} {param} no_momentum finishing"}
        expected |= {f"update {param} {param} no_momentum", f"update {param} {param} sgd"}
        moves = Move if arch == EVERY_PAIR else (Move.TO_X, Move.TO_Y)
        expected |= {f"interpolate {param} {move.name.lower()}" for move in moves}
    for param in ("fp32", "bf16"):
        expected |= {f"reduce_half fp32 {param}", f"reduce_half fp32 {param} finishing"}
        expected |= {f"interpolate_half {param} to_x", f"interpolate_half {param} to_y"}
        expected |= {f"update_half {param} {param}", f"update_quarter {param} {param}"}
        expected |= {f"update {param} {param} plain_{u}" for u in ("adam", "momentum", "sgd")}
        no_momentum = f"update_quarter {param} {param} no_momentum"
        expected |= {no_momentum, f"{no_momentum} finishing"}
    expected |= {"interpolate_quarter bf16 to_x", "interpolate_quarter bf16 to_y"}
    assert set(kernels) == expected
    targets = {re.findall(r"^\.target sm_(\d+)", k.ptx, re.MULTILINE)[0] for k in kernels.values()}
    assert targets == {str(arch)}
    for name, kernel in kernels.items():  # and the pattern above knows every form of an access
        mentions = len(re.findall(r"\b(?:ld|st)\.global", kernel.ptx))
        assert mentions == len(ACCESS.findall(kernel.ptx)) > 0, name


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
    for name in ("update fp32 fp32", "update fp64 fp64"):
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
def test_fp64_elements_are_not_loaded_like_scalars(kernels: Kernels, name: str) -> None:
    """Both have 64 bits, so they are told apart by the number of loads."""
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


def test_roots_and_quotients_of_update_are_correctly_rounded(kernels: Kernels) -> None:
    for name in named(kernels, "update"):
        bits = state_bits(name.split()[1])
        operations = set(re.findall(r"\b(?:r?sqrt|div|rcp)\.[\w.]*f(?:32|64)\b", kernels[name].ptx))
        rootless = name.endswith(("sgd", "plain_momentum"))
        expected = set() if rootless else {f"sqrt.rn.f{bits}", f"div.rn.f{bits}"}
        assert operations == expected, name


def test_update_of_fp32_computes_in_fp32(kernels: Kernels) -> None:
    """Many GPUs have few fp64 units; there is one conversion per coefficient, or gradient."""
    for name in named(kernels, "update"):
        if not name.startswith("update fp64"):
            operations = re.findall(
                r"\b(?:add|sub|mul|fma|neg|max|min)[\w.]*f64", kernels[name].ptx
            )
            assert not operations, name


def test_products_and_sums_are_fused_but_for_moves(kernels: Kernels) -> None:
    """Whatever Triton's default is: it changes from version to version, and says so in a warning.

    A move rounds as plain torch does, so that ``eval()`` and ``averaged_state_dict()`` give the same bits.
    """
    for name, kernel in kernels.items():
        assert kernel.warnings == [], name
    fused = {name for name, kernel in kernels.items() if "fma.rn.f" in kernel.ptx}
    moves = ("interpolate", "interpolate_half", "interpolate_quarter")
    assert fused == set(kernels) - set(named(kernels, *moves))


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


def test_dtypes_make_different_kernels(kernels: Kernels) -> None:
    by_code: dict[str, list[str]] = {}
    for name, kernel in kernels.items():
        code = "\n".join(
            line for line in kernel.ptx.splitlines() if not line.lstrip().startswith((".loc", "//"))
        )
        by_code.setdefault(code, []).append(name)
    assert [names for names in by_code.values() if len(names) > 1] == []


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


def test_nothing_that_changes_is_compiled_in(kernels: Kernels) -> None:
    """Else steps would be compiled anew: hyperparameters, step counts and sizes are arguments."""
    finish = {"COLUMNS", "MAX_COEFFICIENT", "SUM_BLOCK", "LANES"}
    shape = {"COLUMNS", "VECTOR", "CHUNK_SIZE", "BLOCK_SIZE"}
    allowed = {
        "reduce": shape | finish | {"WITH_E", "STATE_DTYPE", "E_DTYPE", "GRAD_DTYPE"},
        "update": shape
        | finish
        | {"PARAM_DTYPE", "STATE_DTYPE", "GRAD_DTYPE", "FORMAT"}
        | {"HAS_EXP_AVG", "HAS_EXP_AVG_SQ", "HAS_DISPLACEMENT"},
        "interpolate": shape | {"PARAM_DTYPE", "STATE_DTYPE", "MOVE", "FORMAT"},
        "finalize": finish,
        "finalize_tensors": {"COLUMNS", "LANES"},
    }
    for name, kernel in kernels.items():
        pass_name = name.split()[0].removesuffix("_half").removesuffix("_quarter")
        assert set(kernel.constants) == allowed[pass_name], name
        assert kernel.specialized_integers == [], name
        assert kernel.same_for_any_model, name
