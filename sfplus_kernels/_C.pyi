"""The compiled extension (csrc/bindings.cpp). Addresses are integers; whoever calls keeps the memory alive.

The columns of every buffer are those of ``contract/layout.py``, dtypes are numbered as in
``layout()["DType"]``, and ``n_threads`` is the most that a pass may use, the caller's included. Every pass
releases the GIL.
"""

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

def update(table: Table, param_dtype: int, grad_dtype: int, run: Run, n_threads: int) -> None:
    """One read and one write of every tensor; nothing on a skipped step."""

def interpolate(table: Table, param_dtype: int, run: Run, move: int, n_threads: int) -> None:
    """Parameters between y, x and z; ``move`` is one of ``layout.Move``."""

def negate(x: int, numel: int, n_threads: int, n_arrays: int = 1) -> None:
    """x <- -x on ``numel`` floats: one read and one write, to measure the memory's bandwidth with.

    They are gone through as ``n_arrays`` arrays side by side, which ``numel`` is a multiple of.
    """

CUDA_MISSING: str
"""Why this build has no CUDA kernels, such as ``SFPLUS_CUDA=off``; empty if it has them."""

# The passes on a CUDA device; only where CUDA_MISSING is empty. Addresses are those of device memory. They
# are launched on ``stream`` (``torch.cuda.Stream.cuda_stream``) of the device with number ``device``, which
# is current only meanwhile, and nothing waits for them. RuntimeError: a kernel could not be launched.

def cuda_reduce(
    table: Table,
    param_dtype: int,
    grad_dtype: int,
    with_e: bool,
    partials: int,
    n_partials: int,
    device: int,
    stream: int,
) -> None:
    """As ``reduce``."""

def cuda_finalize(
    partials: int,
    n_partials: int,
    rows: int,
    n_rows: int,
    run: Run,
    max_coefficient: float,
    device: int,
    stream: int,
) -> None:
    """As ``finalize``."""

def cuda_update(
    table: Table,
    param_dtype: int,
    grad_dtype: int,
    has_exp_avg: bool,
    has_exp_avg_sq: bool,
    run: Run,
    device: int,
    stream: int,
) -> None:
    """As ``update``; says which moments the rows have, which are out of the host's sight."""

def cuda_interpolate(
    table: Table, param_dtype: int, run: Run, move: int, device: int, stream: int
) -> None:
    """As ``interpolate``."""

def cuda_versions() -> tuple[int, int]:
    """Of the CUDA runtime that is linked in, and of the newest that the driver serves, 0 without a driver.

    1000 major + 10 minor.
    """

def cuda_device_problem(device: int) -> str:
    """Why the kernels cannot run on a device, in CUDA's words; empty if they can."""

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
