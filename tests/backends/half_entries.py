"""A parameter with state of 16 bits (``Format.HALF``), and what a backend makes of it in an update.

The fixtures are those of all tests of kernels over few bits, which name them.
"""

from collections.abc import Iterator
from typing import Any

import cuda_on_host
import pytest
import torch
from support import BACKENDS
from torch import Tensor

import sfplus_kernels._C as _C
from sfplus_kernels.backends import registry
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.formats import halves
from sfplus_kernels.contract.layout import Scalar, Setting, Sum

CPU = torch.device("cpu")
BOTH = [torch.float32, torch.bfloat16]
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KEPT = ["mve", "ve", "e", "mv", "m", ""]
"""Of m, v and e: of those that average, and of those that do not."""
ON_HOST = "cuda_on_host"
KERNELS = [name for name in BACKENDS if name not in ("eager", "cuda")] + [ON_HOST]


def backend_of(name: str) -> Any:
    return cuda_on_host.CudaOnHost() if name == ON_HOST else registry.select(name, CPU)[1]


def eager() -> Any:
    return registry.select("eager", CPU)[1]


@pytest.fixture(params=_C.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The C++ loops of each instruction set that this processor has."""
    before = _C.isa()
    _C.set_isa(request.param)
    yield str(request.param)
    _C.set_isa(before)


@pytest.fixture
def roots_are_correctly_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernels': those of torch are not on every processor, and so neither are the eager backend's."""
    root = Tensor.sqrt
    monkeypatch.setattr(Tensor, "sqrt", lambda x: root(x.double()).to(x.dtype))


def values(numel: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Of many sizes: e below what float16 has as a normal number, and above all that it has, too."""
    sizes = torch.randint(-30, 3, (numel,), generator=generator).float()
    return torch.randn(numel, generator=generator) * torch.exp2(sizes) * scale


def at(tensor: Tensor, offset: int) -> Tensor:
    """The same in memory that begins ``offset`` elements after an aligned address."""
    moved = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)[offset:]
    return moved.copy_(tensor)


def make_entry(
    dtype: torch.dtype,
    numel: int = 1000,
    *,
    kept: str = "mve",
    grad_dtype: torch.dtype | None = torch.float32,
    offset: int = 0,
    part: tuple[int, int, int] | None = None,
    seed: int = 0,
    slot: int = 1,
) -> Entry:
    """One parameter in train mode."""
    generator = torch.Generator().manual_seed(seed)
    y = values(numel, generator)
    param, low = (y, None) if dtype == torch.float32 else halves(y)
    m = values(numel, generator).bfloat16()
    v = values(numel, generator).abs().bfloat16()
    e = values(numel, generator, 3.0).half()
    return Entry(
        param=at(param, offset),
        exp_avg=at(m, offset) if "m" in kept else None,
        exp_avg_sq=at(v, offset) if "v" in kept else None,
        displacement=at(e, offset) if "e" in kept else None,
        master_param=None,
        group=0,
        slot=slot,
        grad_dtype=grad_dtype,
        y_low=None if low is None else at(low, offset),
        part=part,
    )


def make_run(n_slots: int = 2) -> RunState:
    generator = torch.Generator().manual_seed(3)
    run = RunState.zeros(1, n_slots, CPU)
    for buffer in (run.group_coefs, run.tensor_coefs, run.hyper):
        buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) / 2)
    run.settings[Setting.ROUNDING_SEED] = 2**32 - 5
    run.tensors[:, Scalar.STEP] = torch.arange(n_slots) + 3_000_000_000
    run.tensors[:, Scalar.Y_BETA] = 0.9
    return run


def buffers(entry: Entry) -> list[Tensor]:
    bits = None if entry.y_low is None else entry.y_low.view(torch.int16)
    tensors = [entry.param, entry.exp_avg, entry.exp_avg_sq, entry.displacement, bits]
    return [t.clone() for t in tensors if t is not None]


def updated(backend: Any, entries: list[Entry], run: RunState | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    grads = [values(e.param.numel(), generator).to(e.grad_dtype) for e in entries if e.grad_dtype]
    plan = backend.plan(entries, CPU)
    backend.set_gradients(plan, grads)
    backend.update(plan, make_run(len(entries) + 1) if run is None else run)
    return [tensor for entry in entries for tensor in buffers(entry)]


def check_sums(backend: Any, entry: Entry) -> None:
    """On small integers, whose sums are exact in any order."""
    assert entry.displacement is not None
    numel = entry.param.numel()
    generator = torch.Generator().manual_seed(numel)
    grad = torch.randint(-3, 4, (numel,), generator=generator).to(entry.grad_dtype)
    entry.displacement.copy_(torch.randint(-3, 4, (numel,), generator=generator))
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [grad])
    for with_e in (True, False):
        sums = backend.reduce(plan, with_e=with_e).sum(0)
        g, e = grad.double(), entry.displacement.double()
        assert float(sums[Sum.GRAD_L1]) == float(g.abs().sum())
        assert float(sums[Sum.GRAD_DOT_E]) == (float((g * e).sum()) if with_e else 0)
        assert float(sums[Sum.GRAD_SQ]) == float(g.square().sum())
