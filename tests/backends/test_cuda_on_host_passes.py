"""The passes of the CUDA kernels on the CPU: the memory that they access, sums, skipped steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    assert_same_bits,
    make_params,
    run,
    set_gradients,
    snapshot,
    stream,
    two_groups,
)
from torch import Tensor

pytest.importorskip("pybind11")
import on_host_entries
from cuda_on_host import CudaOnHost
from on_host_entries import BACKEND, CPU, FLOATS, make_entry, random_run

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.backends import registry
from sfplus_kernels.backends.cuda import LARGEST_CHUNK, SMALLEST_CHUNK, WARPS_PER_BLOCK
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS, Global, Sum
from sfplus_kernels.engine.engine import Engine

on_host = on_host_entries.on_host
pytestmark = pytest.mark.usefixtures("on_host")


# -- memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numel", [1, 3, 4, 127, 128, 511, 512, 513, 2050])
@pytest.mark.parametrize("offsets", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_beside_the_tensors_is_touched(
    dtype: torch.dtype, offsets: tuple[int, int, int], numel: int
) -> None:
    """Views that begin anywhere, between guards that must stay. A misaligned vector access fails."""
    of_param, of_state, of_grad = offsets
    guard = 7.0
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def guarded(offset: int, of: torch.dtype) -> tuple[Tensor, Tensor]:
        whole = torch.full((numel + offset + 8,), guard, dtype=of)
        view = whole[offset : offset + numel]
        view.copy_(torch.randn(numel))
        return whole, view

    generator_state = torch.get_rng_state()
    results = []
    for backend in (registry.select("cpu", CPU)[1], CudaOnHost()):
        torch.set_rng_state(generator_state)
        wholes, views = zip(
            guarded(of_param, dtype),
            guarded(of_grad, dtype),
            *(guarded(of_state, state_dtype) for _ in range(4)),
            strict=True,
        )
        param, grad, m, v, e, y = views
        v.abs_()
        entry = Entry(param, m, v, e, y if dtype != state_dtype else None, 0, 0, dtype)
        plan = backend.plan([entry], CPU)
        backend.set_gradients(plan, [grad])
        backend.update(plan, random_run())
        for whole, view, offset in zip(
            wholes, views, (of_param, of_grad, *[of_state] * 4), strict=True
        ):
            assert (whole[:offset] == guard).all()
            assert (whole[offset + len(view) :] == guard).all()
        results.append([t.clone() for t in views])
    assert_same_bits(*results)


def accesses_of(on_host: Any, action: Any) -> Counter[tuple[str, int]]:
    on_host.accesses = {}
    action()
    return Counter({("st" if s else "ld", width): n for (s, width), n in on_host.accesses.items()})


@pytest.mark.parametrize("tail", [0, 3])
def test_only_the_tail_is_accessed_element_by_element(on_host: Any, tail: int) -> None:
    """16 bytes of state at a time; a size that is no multiple of 4 costs its last elements only."""
    numel, backend = 1024 + tail, CudaOnHost()
    grad = torch.randn(numel)
    entry = make_entry(torch.randn(numel), grad_dtype=torch.float32)
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [grad])
    packs = 1024 // 4
    expected = Counter({("ld", 16): 5 * packs, ("st", 16): 4 * packs})
    expected += Counter({("ld", 4): 5 * tail, ("st", 4): 4 * tail})
    assert accesses_of(on_host, lambda: backend.update(plan, random_run())) == expected
    expected = Counter({("ld", 16): 2 * packs}) + Counter({("ld", 4): 2 * tail})
    assert accesses_of(on_host, lambda: backend.reduce(plan, with_e=True)) == expected
    expected = Counter({("ld", 16): packs}) + Counter({("ld", 4): tail})
    assert accesses_of(on_host, lambda: backend.reduce(plan, with_e=False)) == expected


def test_half_precision_is_accessed_in_as_many_elements(on_host: Any) -> None:
    backend, grad = CudaOnHost(), torch.randn(1024).bfloat16()
    entry = make_entry(torch.randn(1024).bfloat16(), grad_dtype=torch.bfloat16)
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [grad])
    expected = {("ld", 16): 1024, ("ld", 8): 512, ("st", 16): 1024, ("st", 8): 256}
    assert accesses_of(on_host, lambda: backend.update(plan, random_run())) == expected
    # where it is all that is read, 16 bytes of it at a time
    assert accesses_of(on_host, lambda: backend.reduce(plan, with_e=False)) == {("ld", 16): 128}


# -- reduce and finalize -------------------------------------------------------------------------------


@pytest.mark.parametrize("with_e", [True, False])
@pytest.mark.parametrize("numel", [1, 511, 513, 5 * SMALLEST_CHUNK + 2])
@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_sums(dtype: torch.dtype, grad_dtype: torch.dtype, numel: int, with_e: bool) -> None:
    """On small integers, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(numel)
    grad = torch.randint(-3, 4, (numel,), generator=generator).to(grad_dtype)
    entry = make_entry(torch.zeros(numel, dtype=dtype), grad_dtype=grad_dtype)
    entry.displacement.copy_(torch.randint(-3, 4, (numel,), generator=generator))
    backend = CudaOnHost()
    plan = backend.plan([entry], CPU)
    backend.set_gradients(plan, [grad])
    partials = backend.reduce(plan, with_e=with_e)
    sums = partials.sum(0)
    g, e = grad.double(), entry.displacement.double()
    assert float(sums[Sum.GRAD_L1]) == float(g.abs().sum())
    assert float(sums[Sum.GRAD_DOT_E]) == (float((g * e).sum()) if with_e else 0)
    assert float(sums[Sum.GRAD_SQ]) == float(g.square().sum())


def test_a_slot_sums_every_nth_chunk() -> None:
    """With more chunks than slots, slot i has the chunks i, i + 2048, ..., whichever warp takes them."""
    count = VIRTUAL_BLOCKS * WARPS_PER_BLOCK + VIRTUAL_BLOCKS + 3
    grads = list(torch.arange(count, dtype=torch.float32).unsqueeze(1))
    entries = [make_entry(torch.zeros(1), grad_dtype=torch.float32)._replace(slot=0) for _ in grads]
    backend = CudaOnHost()
    plan = backend.plan(entries, CPU)
    backend.set_gradients(plan, grads)
    backend.reduce(plan, with_e=False)
    expected = torch.zeros(VIRTUAL_BLOCKS, dtype=torch.float64)
    expected.index_add_(0, torch.arange(count) % VIRTUAL_BLOCKS, torch.arange(count).double())
    assert torch.equal(plan.table.partials[:, Sum.GRAD_L1], expected)


@pytest.mark.parametrize("n_groups", [1, 300])
def test_finalize_is_that_of_the_cpu_backend(n_groups: int) -> None:
    """Many groups and tensors, more than one block has threads."""
    results = []
    for backend in ("cpu", BACKEND):
        params = make_params([(2,)] * (n_groups + 200), torch.float64)
        groups: list[dict[str, Any]] = [
            {"params": [p], "lr": 0.1 + i / 999} for i, p in enumerate(params[: n_groups - 1])
        ]
        groups.append({"params": params[n_groups - 1 :]})
        optimizer = AdamCScheduleFreePlus(groups, backend=backend, max_grad_norm=1.0, **EVERYTHING)
        run(optimizer, params, 3, missing=0.2)
        results.append(optimizer._runtime.engine.run)  # type: ignore[union-attr]
    for name in ("globals", "groups", "tensors", "group_coefs", "tensor_coefs"):
        ours, theirs = (getattr(r, name) for r in results)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_the_order_in_which_threads_run_does_not_matter(on_host: Any) -> None:
    """A missing barrier would show: threads run from the first to the last, or the other way round."""
    results = []
    for reverse in (False, True):
        on_host.reverse = reverse
        params = make_params(dtype=torch.float32)
        optimizer = AdamCScheduleFreePlus(two_groups(params), backend=BACKEND, **EVERYTHING)
        run(optimizer, params, 10)
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)


@pytest.mark.parametrize("bad", ["loss", "gradient", "huge"])
def test_a_skipped_step_changes_nothing(bad: str) -> None:
    params = make_params(dtype=torch.float32)
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=BACKEND, **EVERYTHING)
    run(optimizer, params, 3)
    before = snapshot(optimizer, params)
    (loss, gradients), *_ = stream([p.shape for p in params], 1)
    if bad == "gradient":
        gradients[1][3] = float("nan")  # type: ignore[index]
    if bad == "huge":
        gradients[1][3] = 1e30  # type: ignore[index]
    set_gradients(params, gradients)
    optimizer.step(loss=float("inf") if bad == "loss" else loss)
    assert optimizer.metrics()["skipped_steps"] == 1
    assert_same_bits(before, snapshot(optimizer, params))


def test_a_skipped_update_accesses_no_tensor(on_host: Any) -> None:
    backend, grad = CudaOnHost(), torch.randn(600)
    plan = backend.plan([make_entry(torch.randn(600), grad_dtype=torch.float32)], CPU)
    backend.set_gradients(plan, [grad])
    state = random_run()
    state.globals[Global.SKIP] = 1
    assert not accesses_of(on_host, lambda: backend.update(plan, state))


def test_nothing_but_empty_tensors() -> None:
    params = make_params([(0,), (3, 0)], torch.float32)
    optimizer = AdamCScheduleFreePlus(params, backend=BACKEND)
    run(optimizer, params, 2)
    optimizer.eval()
    assert optimizer.metrics()["k"] == 2


def test_large_chunks() -> None:
    """A plan whose chunks are the largest ones, cut down to one tensor of them and a rest."""
    numel = 3 * LARGEST_CHUNK + 5
    results = []
    for backend in (registry.select("cpu", CPU)[1], CudaOnHost()):
        torch.manual_seed(0)
        entry, grad = make_entry(torch.randn(numel), grad_dtype=torch.float32), torch.randn(numel)
        if isinstance(backend, CudaOnHost):
            plan: Any = backend.plan([entry], CPU, chunk_size=LARGEST_CHUNK)
            assert plan.table.launches[0].n_chunks == 4
        else:
            plan = backend.plan([entry], CPU)
        backend.set_gradients(plan, [grad])
        backend.update(plan, random_run())
        results.append([entry.param, *entry[1:4]])
    assert_same_bits(*results)


def test_the_engine_takes_it_by_name() -> None:
    assert Engine(BACKEND, CPU, [1], None).backend_name == BACKEND
