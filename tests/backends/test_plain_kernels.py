"""The update pass of what averages nothing, in the kernels of each backend: the bits of the eager backend."""

from collections import Counter
from typing import Any

import cuda_on_host
import pytest
import torch
from support import BACKENDS, assert_same_bits
from torch import Tensor

from sfplus_kernels.backends import registry
from sfplus_kernels.backends.cuda import gradients_of
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.formats import state_dtype
from sfplus_kernels.contract.layout import Global, Group, Setting, Sum

CPU = torch.device("cpu")
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ON_HOST = "cuda_on_host"
KERNELS = [name for name in BACKENDS if name not in ("eager", "cuda")] + [ON_HOST]
DIRECTIONS = ["plain_adam", "plain_momentum", "plain_sgd"]


def backend_of(name: str) -> Any:
    return cuda_on_host.CudaOnHost() if name == ON_HOST else registry.select(name, CPU)[1]


@pytest.fixture(autouse=True)
def _roots_are_correctly_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernels': those of torch are not on every processor, and so neither are the eager backend's."""
    root = Tensor.sqrt
    monkeypatch.setattr(Tensor, "sqrt", lambda x: root(x.double()).to(x.dtype))


def make_entry(
    direction: str,
    dtype: torch.dtype,
    numel: int = 600,
    *,
    grad_dtype: torch.dtype | None = None,
    offset: int = 0,
    slot: int = 0,
) -> Entry:
    """Random state; its memory begins ``offset`` elements after an aligned address."""
    generator = torch.Generator().manual_seed(slot)
    state = [
        torch.randn(numel + offset, generator=generator, dtype=torch.float64)[offset:]
        for _ in range(3)
    ]
    y, m, v = (tensor.to(state_dtype(dtype)) for tensor in state)
    param = torch.empty(numel + offset, dtype=dtype)[offset:].copy_(y)
    return Entry(
        param=param,
        exp_avg=None if direction == "plain_sgd" else m,
        exp_avg_sq=v.abs() if direction == "plain_adam" else None,
        displacement=None,
        master_param=y if y.dtype != dtype else None,
        group=0,
        slot=slot,
        grad_dtype=dtype if grad_dtype is None else grad_dtype,
    )


def make_run(n_slots: int) -> RunState:
    generator = torch.Generator().manual_seed(3)
    run = RunState.zeros(1, n_slots, CPU)
    for buffer in (run.group_coefs, run.tensor_coefs):
        buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) / 2)
    return run


def buffers(entry: Entry) -> list[Tensor]:
    tensors = (entry.param, entry.exp_avg, entry.exp_avg_sq, entry.master_param)
    return [tensor.clone() for tensor in tensors if tensor is not None]


def updated(backend: Any, entries: list[Entry], *, skipped: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(e.param.numel(), generator=generator).to(e.grad_dtype) for e in entries]
    plan, run = backend.plan(entries, CPU), make_run(len(entries))
    backend.set_gradients(plan, grads)
    run.globals[Global.SKIP] = float(skipped)
    backend.update(plan, run)
    return [tensor for entry in entries for tensor in buffers(entry)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("grad", FLOATS)
@pytest.mark.parametrize("param", FLOATS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_update_has_the_bits_of_eager(
    name: str, direction: str, param: torch.dtype, grad: torch.dtype
) -> None:
    """Of gradients too that there is no kernel for: they are brought to it in another dtype."""
    results = []
    for backend in (backend_of("eager"), backend_of(name)):
        entries = [
            make_entry(direction, param, numel, grad_dtype=grad, offset=offset, slot=slot)
            for slot, (numel, offset) in enumerate([(1, 0), (600, 0), (131, 1)])
        ]
        results.append(updated(backend, entries))
    assert_same_bits(*results)
    before = [make_entry(direction, param, 600, grad_dtype=grad, slot=1)]
    assert not torch.equal(results[0][len(buffers(before[0]))], before[0].param)


@pytest.mark.parametrize("name", KERNELS)
def test_tensors_with_other_buffers_are_launches_of_their_own(name: str) -> None:
    """Those that average, in the same plan."""
    results = []
    for backend in (backend_of("eager"), backend_of(name)):
        entries = [make_entry(d, torch.float32, slot=i) for i, d in enumerate(DIRECTIONS)]
        averaging = make_entry("plain_adam", torch.float32, slot=3)
        e = torch.linspace(-1, 1, averaging.param.numel())
        entries.append(averaging._replace(displacement=e))
        results.append([*updated(backend, entries), e])
    assert_same_bits(*results)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_skipped_step_writes_nothing(name: str, direction: str) -> None:
    entry = make_entry(direction, torch.bfloat16)
    before = buffers(entry)
    assert_same_bits(updated(backend_of(name), [entry], skipped=True), before)


@pytest.mark.parametrize("name", KERNELS)
def test_sums_of_gradients(name: str) -> None:
    entry, grad = make_entry("plain_sgd", torch.float32), torch.arange(600.0)
    backend = backend_of(name)
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [grad])
    sums = backend.reduce(plan, with_e=False).sum(0)
    assert float(sums[Sum.GRAD_L1]) == float(grad.sum())
    assert float(sums[Sum.GRAD_DOT_E]) == 0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_kernels_make_a_step(direction: str) -> None:
    on_host, backend = cuda_on_host.module().settings, cuda_on_host.CudaOnHost()
    entry, run = make_entry(direction, torch.bfloat16), make_run(1)
    run.settings[Setting.GRAD_SIGN] = 1
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [torch.ones(600, dtype=torch.bfloat16)])
    on_host.calls = []
    backend.step(plan, run, sums=False, with_e=False, loss=None)
    update = f"overlap update_{direction}_bfloat16_bfloat16"
    assert [str(call) for call in on_host.calls] == ["launch finalize", update]
    assert run.groups[0, Group.K] == 1


@pytest.mark.parametrize(("direction", "tensors"), [*zip(DIRECTIONS, (4, 3, 2), strict=True)])
def test_every_tensor_is_accessed_once_in_vectors(direction: str, tensors: int) -> None:
    """28, 20 and 12 bytes for an element of float32: all tensors are read, all but the gradient written."""
    on_host, backend = cuda_on_host.module().settings, cuda_on_host.CudaOnHost()
    entry = make_entry(direction, torch.float32, 1024 + 3)
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [torch.ones(1024 + 3)])
    on_host.accesses = {}
    backend.update(plan, make_run(1))
    found = Counter({("st" if s else "ld", w): n for (s, w), n in on_host.accesses.items()})
    expected = {("ld", 16): 256 * tensors, ("st", 16): 256 * (tensors - 1)}
    assert found == {**expected, ("ld", 4): 3 * tensors, ("st", 4): 3 * (tensors - 1)}


def test_a_gradient_is_brought_in_a_dtype_that_loses_nothing() -> None:
    """But of float64 for a smaller parameter, which the kernel would round as well."""
    for param in FLOATS:
        for grad in FLOATS:
            known = gradients_of(make_entry("plain_adam", param, grad_dtype=grad))
            exact = torch.promote_types(known[0], grad) == known[0]
            assert grad in known or exact or grad == torch.float64
        assert {param, state_dtype(param)} <= set(known)
