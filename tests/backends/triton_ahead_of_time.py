"""Compiles the Triton kernels without a GPU: the program that ``conftest.py`` runs.

The backend itself makes the launches; they are recorded instead of run, so that what is compiled has
the arguments, the compile-time constants and the options of a real step. It is a program of its own
because kernels are imported either for the interpreter or for the compiler, and the process of the
tests has chosen the interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sfplus_kernels.backends import table
from sfplus_kernels.backends.triton import backend as triton_backend
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.formats import FLOAT_DTYPES, needs_master, state_dtype
from sfplus_kernels.contract.layout import Format, Move

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    int: "i32",
}


def main(arch: int, dtypes: Sequence[str], every_pair: bool) -> None:
    """Print, as JSON, what becomes of every kernel on ``sm_{arch}``, by its name.

    ``dtypes``: of the parameters. ``every_pair``: for gradients of every dtype, else for those of the
    parameter's, and for the rarer passes too.
    """
    compiled: dict[str, dict[str, Any]] = {}
    for param_dtype in FLOAT_DTYPES:
        if TYPES[param_dtype].removeprefix("*") not in dtypes:
            continue
        for grad_dtype in FLOAT_DTYPES if every_pair else [param_dtype]:
            for n_moments in (2, 1, 0) if grad_dtype == param_dtype else (2,):
                small = record_launches(param_dtype, grad_dtype, n_moments, [99], every_pair)
                # nothing of this one but its dtypes is the same
                numels = [40_000, 8_192, 5]
                large = record_launches(param_dtype, grad_dtype, n_moments, numels, every_pair)
                for launch, other in zip(small, large, strict=True):
                    if launch.name not in compiled:
                        figures = launch.compile(arch)
                        figures["same_for_any_model"] = str(launch) == str(other)
                        compiled[launch.name] = figures
        if param_dtype in (torch.float32, torch.bfloat16):
            for direction in ("plain_adam", "plain_momentum", "plain_sgd"):
                *_, launch = record_plain_step(param_dtype, direction)
                compiled[launch.name] = {**launch.compile(arch), "same_for_any_model": True}
    small_formats = ((Format.HALF, 2), (Format.QUARTER, 2), (Format.QUARTER, 1))
    for param_dtype in (torch.float32, torch.bfloat16):  # those whose state may be in fewer bits
        for state_format, n_moments in small_formats:
            launches = record_launches(
                param_dtype, param_dtype, n_moments, [4096], False, state_format
            )
            for launch in launches:
                is_small = "half" in launch.name or "quarter" in launch.name
                if launch.name not in compiled and is_small:
                    compiled[launch.name] = {**launch.compile(arch), "same_for_any_model": True}
    json.dump(compiled, sys.stdout)


def record_launches(
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    n_moments: int,
    numels: list[int],
    rare_passes: bool,
    state_format: Format = Format.FULL,
) -> list[RecordedLaunch]:
    """The launches of one step and of the interpolations, one parameter in each group."""
    launches: list[RecordedLaunch] = []

    def recorder(kernel: Any, n_programs: int) -> Callable[..., None]:
        return lambda *args, **kwargs: launches.append(RecordedLaunch(kernel, args, kwargs))

    triton_backend._grid = recorder
    entries = []
    for i, numel in enumerate(numels):
        param = torch.zeros(numel, dtype=param_dtype)
        state = [torch.zeros(numel, dtype=state_dtype(param.dtype)) for _ in range(4)]
        master = state[3] if needs_master(param.dtype) else None
        exp_avg = state[1] if n_moments == 2 else None
        exp_avg_sq = state[2] if n_moments >= 1 else None
        entry = Entry(param, exp_avg, exp_avg_sq, state[0], master, i, i, grad_dtype)
        if state_format == Format.HALF:
            assert exp_avg is not None
            assert exp_avg_sq is not None
            entry = entry._replace(
                exp_avg=exp_avg.bfloat16(),
                exp_avg_sq=exp_avg_sq.bfloat16(),
                displacement=entry.displacement.half(),
                master_param=None,
                y_low=None if master is None else master.bfloat16(),
            )
        if state_format == Format.QUARTER:
            assert exp_avg_sq is not None
            entry = entry._replace(
                exp_avg=None if exp_avg is None else exp_avg.to(torch.uint8),
                exp_avg_sq=exp_avg_sq.to(torch.uint8),
                displacement=entry.displacement.half(),
                master_param=None,
                y_low=None if master is None else master.to(torch.int8),
                exponents=torch.zeros(numel // 32, dtype=torch.uint8),
            )
        entries.append(entry)
    run = RunState.zeros(len(numels), len(numels), torch.device("cpu"))
    plan = table.build_table(entries, torch.device("cpu"), triton_backend.chunk_size(False))
    backend = triton_backend.TritonBackend()
    loss = torch.zeros((), dtype=grad_dtype)
    backend.step(plan, run, sums=True, with_e=True, loss=loss)
    if grad_dtype == param_dtype:
        if n_moments == 1:
            backend.step(plan, run, sums=False, with_e=False, loss=None)
        backend.reduce(plan, with_e=True)
    if rare_passes:
        backend.reduce(plan, with_e=False)
    triton_backend.MANY_TENSORS = 0
    backend.finalize(plan, run, plan.partials)
    triton_backend.MANY_TENSORS = 1024
    for move in Move if rare_passes else (Move.TO_X, Move.TO_Y):
        backend.interpolate(plan, run, move)
    return launches


def record_plain_step(param_dtype: torch.dtype, direction: str) -> list[RecordedLaunch]:
    """The launches of a step of what averages nothing, after one that clips."""
    launches: list[RecordedLaunch] = []
    triton_backend._grid = lambda kernel, n_programs: (
        lambda *args, **kwargs: launches.append(RecordedLaunch(kernel, args, kwargs))
    )
    param = torch.zeros(99, dtype=param_dtype)
    state = [torch.zeros(99, dtype=state_dtype(param_dtype)) for _ in range(3)]
    entry = Entry(
        param=param,
        exp_avg=None if direction == "plain_sgd" else state[0],
        exp_avg_sq=state[1] if direction == "plain_adam" else None,
        displacement=None,
        master_param=state[2] if needs_master(param_dtype) else None,
        group=0,
        slot=0,
        grad_dtype=param_dtype,
    )
    run = RunState.zeros(1, 1, torch.device("cpu"))
    plan = table.build_table([entry], torch.device("cpu"), triton_backend.chunk_size(False))
    triton_backend.TritonBackend().step(plan, run, sums=True, with_e=False, loss=None)
    return launches


class RecordedLaunch:
    """What Triton compiles for one launch."""

    def __init__(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.kernel = kernel
        self.options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
        given = dict(zip(kernel.arg_names, args, strict=False))
        given |= {k: v for k, v in kwargs.items() if k in kernel.arg_names}
        # what is None is compiled in too: it is not there
        self.constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
        self.absent = {name: None for name, value in given.items() if value is None}
        # as Triton specializes them: addresses that are multiples of 16 are known to be, and
        # integers too, and ones, unless the kernel declares that it does not want that
        self.signature: dict[str, str] = {}
        self.attributes: dict[tuple[int], list[tuple[str, int]]] = {}
        self.specialized_integers: list[str] = []
        for position, param in enumerate(kernel.params):
            arg = given[param.name]
            if param.is_constexpr or arg is None:
                self.signature[param.name] = "constexpr"
            elif isinstance(arg, torch.Tensor):
                self.signature[param.name] = TYPES[arg.dtype]
                if arg.data_ptr() % 16 == 0 and not param.do_not_specialize_on_alignment:
                    self.attributes[(position,)] = [("tt.divisibility", 16)]
            else:
                self.signature[param.name] = TYPES[type(arg)]
                if not param.do_not_specialize:
                    self.specialized_integers.append(param.name)

    def __repr__(self) -> str:
        return f"{self.name} {self.signature} {self.attributes} {self.constants} {self.options}"

    @property
    def is_memory_pass(self) -> bool:
        return "BLOCK_SIZE" in self.constants

    @property
    def name(self) -> str:
        """The pass and what it is compiled for: ``update bf16 fp32``, ``interpolate fp16 to_x``."""
        words = [self.kernel.__name__.removesuffix("_kernel")]
        own_e = str(self.constants.get("E_DTYPE")) == "fp16"
        state_format = Format(self.constants.get("FORMAT", Format.HALF if own_e else Format.FULL))
        keys = {
            "reduce": ("STATE_DTYPE", "GRAD_DTYPE"),
            "update": ("PARAM_DTYPE", "GRAD_DTYPE"),
            "interpolate": ("PARAM_DTYPE",),
        }.get(words[0], ())
        words += [str(self.constants[key]) for key in keys]
        if "MOVE" in self.constants:
            words.append(Move(self.constants["MOVE"]).name.lower())
        if not self.constants.get("WITH_E", True):
            words.append("gradients_only")
        if not self.constants.get("HAS_EXP_AVG", True):
            words.append("no_momentum" if self.constants["HAS_EXP_AVG_SQ"] else "sgd")
        if not self.constants.get("HAS_DISPLACEMENT", True):
            has_m, has_v = self.constants["HAS_EXP_AVG"], self.constants["HAS_EXP_AVG_SQ"]
            words[3:] = ["plain_adam" if has_v else "plain_momentum" if has_m else "plain_sgd"]
        if words[0] in ("reduce", "update") and "tickets_ptr" not in self.absent:
            words.append("finishing")
        if state_format != Format.FULL:
            words[0] += f"_{state_format.name.lower()}"
        return " ".join(words)

    def compile(self, arch: int) -> dict[str, Any]:
        """Its PTX and what it needs of a multiprocessor."""
        source = ASTSource(
            self.kernel, self.signature, {**self.constants, **self.absent}, self.attributes
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            binary = triton.compile(
                source, target=GPUTarget("cuda", arch, 32), options=dict(self.options)
            )
        usage = resource_usage(binary.asm["cubin"])
        return {
            "ptx": binary.asm["ptx"],
            "registers": usage["REG"],
            "local_beside_vectors": self.is_memory_pass
            and usage["STACK"] > 0
            and local_beside_vectors(binary.asm["cubin"]),
            "stack": usage["STACK"] + usage["LOCAL"],
            "shared": binary.metadata.shared,
            "num_warps": binary.metadata.num_warps,
            "block_size": self.constants.get("BLOCK_SIZE", 0),
            "constants": sorted(self.constants),
            "specialized_integers": self.specialized_integers,
            "warnings": [str(warning.message) for warning in caught],
        }


def local_beside_vectors(cubin: bytes) -> bool:
    """Whether local memory is accessed between the first and the last access of 16 bytes."""
    sass = said_of(cubin, "-sass")
    vectors = [access.start() for access in re.finditer(r"\b(?:LDG|STG)\.\S*128\b", sass)]
    local = [access.start() for access in re.finditer(r"\b(?:LDL|STL)\b", sass)]
    return bool(vectors) and any(vectors[0] < place < vectors[-1] for place in local)


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of stack and local memory, which is where spills go."""
    listing = said_of(cubin, "--dump-resource-usage")
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", listing)}


def said_of(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
