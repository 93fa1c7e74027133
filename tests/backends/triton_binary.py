"""A kernel as the Triton compiler made it: what it accesses and needs, and what it should; for the tests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

USUAL = ("fp32", "bf16")
"""Dtypes of parameters that ``make test`` compiles for."""


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for."""

    arch: int
    dtypes: tuple[str, ...] = ("fp64", "fp32", "bf16", "fp16")  # of parameters
    every_pair: bool = (
        False  # gradients of every dtype, not the parameter's, and the rarer passes too
    )

    def __str__(self) -> str:
        words = [f"sm_{self.arch}"] + ["usual dtypes"] * (self.dtypes == USUAL)
        return ", ".join(words)


TARGETS = [Target(80, USUAL), Target(80), Target(90, every_pair=True), Target(100)]
"""The first is for ``make test``."""

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
