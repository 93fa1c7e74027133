"""The compiled extension (csrc/bindings.cpp). Addresses are integers; whoever calls keeps the memory alive.

The columns of every buffer are those of ``contract/layout.py``, dtypes are numbered as in
``layout()["DType"]``, and ``n_threads`` is the most that a pass may use, the caller's included. Every pass
releases the GIL.
"""

from collections.abc import Sequence

from torch import Tensor

class Table:
    """The chunks of one launch. ``chunk_size`` and ``n_elements`` count elements."""

    def __init__(
        self,
        rows: int,
        gradients: int,
        chunks: int,
        n_chunks: int,
        chunk_size: int,
        n_elements: int,
        drift: int = 0,
    ) -> None: ...

class Run:
    """The fp64 buffers of ``contract/backend.py``'s ``RunState``."""

    def __init__(
        self,
        globals: int,
        groups: int,
        tensors: int,
        hyper: int,
        settings: int,
        group_coefs: int,
        tensor_coefs: int,
        n_groups: int,
    ) -> None: ...

def reduce(
    table: Table,
    format: int,
    param_dtype: int,
    grad_dtype: int,
    with_e: bool,
    partials: int,
    n_partials: int,
    n_threads: int,
) -> None:
    """Slot i of ``partials`` becomes the sums over the chunks i, i + n_partials, ...

    Without ``with_e`` the sum of g e is 0.
    """

def finalize(
    partials: int,
    n_partials: int,
    rows: int,
    n_rows: int,
    run: Run,
    max_coefficient: float,
) -> None:
    """Sums, loss and run state -> coefficients; advances the run state, or marks a skipped step."""

def update(
    table: Table, format: int, param_dtype: int, grad_dtype: int, run: Run, n_threads: int
) -> None:
    """One read and one write of every tensor; nothing on a skipped step."""

def interpolate(
    table: Table, format: int, param_dtype: int, run: Run, move: int, n_threads: int
) -> None:
    """Parameters between y, x and z; ``move`` is one of ``layout.Move``."""

class MemoryLoop:
    """What memory allows a pass over arrays side by side: (address, bytes of an element) each, 1, 2, 4 or 8.

    A part is such arrays with the number of their elements. Of a part's arrays the first ``n_changed`` are
    written. Blocks of 64 elements: fewer at the end of a part are left alone.
    """

    def __init__(
        self, parts: Sequence[tuple[Sequence[tuple[int, int]], int]], n_changed: int
    ) -> None: ...
    def run(self, backwards: bool, flips: bool, n_threads: int) -> int:
        """Writes with bits flipped, or as they were; returns the exclusive or of the others' 32-bit words.

        ``backwards`` begins with the last elements.
        """

class TensorReader:
    """Where tensors are and what they look like: see ``backends/tensor_reader.py``.

    Args:
        plain: the types of tensors that are what they look like, ``torch.Tensor`` first.
        probes: tensors on which torch's C interface is tried. Without any, or if it is another one, tensors
            are asked by their methods, which takes ten times as long.
        versioned: tensors that were written differently often, each with a view of it.
        graded: tensors with a gradient and without: two of each, and one that never had to do with any.
    """

    def __init__(
        self,
        plain: tuple[type, ...],
        probes: tuple[Tensor, ...],
        versioned: tuple[tuple[Tensor, Tensor], ...] = (),
        graded: tuple[Tensor, ...] = (),
    ) -> None: ...
    @property
    def direct(self) -> bool:
        """Whether the C interface is used."""

    @property
    def knows_words(self) -> bool:
        """Whether it was found where torch keeps all that, so that most tensors need not be asked at all."""

    @property
    def knows_versions(self) -> bool:
        """Whether it was found where torch counts how often a tensor was written."""

    @property
    def knows_gradients(self) -> bool:
        """Whether it was found by which way torch gets from a tensor to its gradient."""

    def grad(self, tensor: Tensor) -> Tensor | None:
        """As the attribute."""

    def count_versions(self, tensors: list[Tensor]) -> bool:
        """Count a write of each; False, and nothing is counted, where torch has to do it."""

    def addresses(self, tensors: list[Tensor], strides: list[tuple[int, ...]]) -> bytearray | None:
        """int64; None if one of the tensors has other strides, or is none of the plain types.

        With ``knows_words`` also where one is negated (``is_neg()``) and the first is not, or the other way.
        """

class Witness:
    """What was seen of an optimizer's groups and state; see ``engine/validity.py`` for the two methods.

    Args:
        reader: of others than plain tensors ``_local_tensor`` is looked at.
        names: the keys of ``state[p]`` that kernels touch.
    """

    def __init__(self, reader: TensorReader, names: tuple[str, ...]) -> None: ...
    @property
    def knows_dicts(self) -> bool:
        """Whether it is seen by a number of Python's that a dict was not modified."""
    def note(self, groups: object, state: object, gradients: object) -> bool:
        """Remember what is there; False if it cannot be compared."""

    def look(self, groups: object, state: object, gradients: object) -> tuple[list, bool] | None:
        """(gradients, moved), or None if anything is not as it was noted."""

CUDA_MISSING: str
"""Why this build has no CUDA kernels, such as ``SFPLUS_CUDA=off``; empty if it has them."""

# The rest is only where CUDA_MISSING is empty.

CUDA_COMPILER: str
"""Name and release of what made the CUDA kernels, such as ``NVRTC 12.9``."""

CUDA_IMAGES: dict[str, tuple[memoryview, int, int]]
"""Their code by architecture, ``sm_90``; ``compute_90`` for PTX, with a zero at its end: an xz-compressed
stream, which may hold that of others too, and in what it unpacks to the code's first byte and its size."""

CUDA_KERNELS: list[str]
"""Their names: csrc/cuda/kernels.h."""

def cuda_driver_version() -> int:
    """The newest CUDA that the driver serves, 1000 major + 10 minor; 0 without a driver."""

def cuda_capability(device: int) -> tuple[int, int]:
    """Compute capability. RuntimeError, in the driver's words: no driver, no such device."""

def cuda_load(device: int, image: bytes) -> None:
    """Load the kernels for a device, once, in its primary context; no other context is made.

    RuntimeError, in the driver's words: they cannot be loaded.
    """

class Finish:
    """What a kernel is told that forms the step's coefficients, or, without ``tickets``, only reads them.

    ``loss`` is the address of one number of ``loss_dtype``, or 0 where the run state has it; ``tickets``
    that of three 32-bit zeros, or 0.
    """

    def __init__(
        self,
        partials: int,
        n_partials: int,
        rows: int,
        n_rows: int,
        run: Run,
        loss: int,
        loss_dtype: int,
        max_coefficient: float,
        tickets: int,
    ) -> None: ...

# The passes on a CUDA device for which the kernels were loaded. Addresses are those of device memory. They
# are launched on ``stream`` (``torch.cuda.Stream.cuda_stream``) of that device, whose context is current only
# meanwhile, and nothing waits for them. RuntimeError: a kernel could not be launched.

def cuda_reduce(
    table: Table,
    format: int,
    param_dtype: int,
    grad_dtype: int,
    with_e: bool,
    partials: int,
    n_partials: int,
    weight: float,
    finish: Finish,
    device: int,
    stream: int,
) -> None:
    """As ``reduce``, each sum times ``weight``; then the coefficients, if ``finish`` has tickets."""

def cuda_finalize(finish: Finish, device: int, stream: int) -> None:
    """As ``finalize``."""

def cuda_update(
    table: Table,
    format: int,
    param_dtype: int,
    grad_dtype: int,
    has_exp_avg: bool,
    has_exp_avg_sq: bool,
    has_displacement: bool,
    finish: Finish,
    device: int,
    stream: int,
) -> None:
    """As ``update``, after the coefficients, of no sums, if ``finish`` has tickets.

    Says which buffers the rows have, which are out of the host's sight.
    """

def cuda_interpolate(
    table: Table, format: int, param_dtype: int, run: Run, move: int, device: int, stream: int
) -> None:
    """As ``interpolate``."""

def layout() -> dict[str, dict[str, int]]:
    """The columns as the C++ code has them, by the names of the enums."""

def isa() -> str:
    """The instruction set in use: the widest one, or that of the environment variable SFPLUS_CPU_ISA.

    Raises:
        ValueError: that one is unknown or not to be had here; the message names those that are.
    """

def available_isas() -> list[str]:
    """Instruction sets that were compiled and that this processor has, the widest first."""

def set_isa(name: str) -> None:
    """Take another instruction set from now on (for tests). Raises as ``isa``."""
