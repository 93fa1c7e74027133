"""The drift monitor in the CUDA kernels' logic, on the CPU (see ``cuda_on_host``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import assert_same_bits, make_params, set_gradients, snapshot, stream
from torch import Tensor

pytest.importorskip("pybind11")
import half_entries
import on_host_entries
import quarter_entries
import test_drift
import test_plain_kernels
import test_quarter_kernels
from cuda_on_host import CudaOnHost
from half_entries import BOTH
from on_host_entries import BACKEND, CPU, FLOATS, make_entry, random_run

from sfplus_kernels import SGD, AdamCScheduleFreePlus, AdamW, AdamWScheduleFree
from sfplus_kernels.backends import registry
from sfplus_kernels.backends.cuda import LARGEST_CHUNK, SMALLEST_CHUNK
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.layout import Drift, Global

on_host = on_host_entries.on_host
pytestmark = pytest.mark.usefixtures("on_host")


# -- the same tests as the other backends ------------------------------------------------------------------


@pytest.mark.parametrize("name", test_drift.ALL)
def test_figures_are_those_of_the_references_sequences(name: str) -> None:
    test_drift.test_figures_are_those_of_the_references_sequences(name, BACKEND)


@pytest.mark.parametrize(("dtype", "state_format"), test_drift.FORMATS)
def test_formats(dtype: torch.dtype, state_format: str) -> None:
    test_drift.test_formats(dtype, state_format, BACKEND)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
@pytest.mark.parametrize("make", [AdamW, SGD])
def test_formats_without_averaging(make: Any, dtype: torch.dtype, state_format: str) -> None:
    test_drift.test_formats_without_averaging(make, dtype, state_format, BACKEND)


def test_skipped_steps_and_rows_of_a_fixed_norm() -> None:
    test_drift.test_a_skipped_step_leaves_the_figures_of_the_last_one(BACKEND)
    test_drift.test_rows_of_a_fixed_norm(BACKEND)


# -- beside the eager backend, pass by pass ----------------------------------------------------------------


def watched(backend: Any, entries: list[Entry], grads: list[Tensor], run: Any, **more: Any) -> Any:
    plan = backend.plan(entries, CPU, watched=True, **more)
    backend.set_gradients(plan, grads)
    backend.update(plan, run)
    return backend.drift(plan)


def assert_near_eager(make: Any, grads: list[Tensor], run: Any, **more: Any) -> None:
    """Sums of float32 within a chunk, of terms of any sign in one of them."""
    eager = registry.select("eager", CPU)[1]
    expected = watched(eager, make(), grads, run())
    found = watched(CudaOnHost(), make(), grads, run(), **more)
    assert bool((expected[:, Drift.UPDATE_SQ] > 0).all())
    size = (expected[:, Drift.WEIGHT_SQ] * expected[:, Drift.UPDATE_SQ]).sqrt()
    error = (found - expected).abs()
    error[:, Drift.WEIGHT_DOT_UPDATE] /= size
    error[:, : Drift.WEIGHT_DOT_UPDATE] /= expected[:, : Drift.WEIGHT_DOT_UPDATE]
    assert float(error.max()) < 1e-5


@pytest.mark.parametrize("grad", FLOATS)
@pytest.mark.parametrize("param", FLOATS)
@pytest.mark.parametrize("kept", ["mve", "ve", "e", "mv", "m", ""])
def test_every_pair_of_dtypes(param: torch.dtype, grad: torch.dtype, kept: str) -> None:
    """Packs, and what is left of them; memory of any alignment; an element written to by somebody."""
    sizes = [(1, 0), (600, 0), (131, 1), (2 * SMALLEST_CHUNK + 3, 0)]

    def make() -> list[Entry]:
        torch.manual_seed(0)
        entries = []
        for slot, (numel, offset) in enumerate(sizes):
            entry = make_entry(
                torch.randn(numel + offset, dtype=torch.float64).to(param)[offset:], offset, grad
            )
            master = entry.master_param
            if master is not None:
                entry.param.copy_(master)
                entry.param[::7] = 0.5
            entries.append(
                entry._replace(
                    exp_avg=entry.exp_avg if "m" in kept else None,
                    exp_avg_sq=entry.exp_avg_sq if "v" in kept else None,
                    displacement=entry.displacement if "e" in kept else None,
                    slot=slot,
                )
            )
        return entries

    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(n, generator=generator, dtype=torch.float64).to(grad) for n, _ in sizes]
    assert_near_eager(make, grads, lambda: test_plain_kernels.make_run(len(sizes)))


HALVES = [(half_entries, dtype, kept) for dtype in BOTH for kept in half_entries.KEPT]
QUARTERS = [(quarter_entries, dtype, kept) for dtype, kept in test_quarter_kernels.KINDS]


@pytest.mark.parametrize("grad", BOTH)
@pytest.mark.parametrize(("of", "param", "kept"), [*HALVES, *QUARTERS])
def test_state_of_few_bits(of: Any, param: torch.dtype, kept: str, grad: torch.dtype) -> None:
    sizes = [32, 512, 1056] if of is quarter_entries else [1, 31, 520, 1029]
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(n, generator=generator).to(grad) for n in sizes]
    run = half_entries.make_run

    def make() -> list[Entry]:
        return [
            of.make_entry(param, n, kept=kept, grad_dtype=grad, seed=n, slot=slot)
            for slot, n in enumerate(sizes)
        ]

    assert_near_eager(make, grads, lambda: run(len(sizes)))


# -- what it costs, and what it leaves alone ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("state_format", ["float32", "16bit", "8bit"])
def test_no_memory_is_accessed_for_it(on_host: Any, state_format: str, dtype: torch.dtype) -> None:
    """But the slots. The coefficients are made by a kernel of their own, also where none was needed."""
    seen, launches, results = [], [], []
    for per in (None, "tensor"):
        params = make_params([(700, 3), (9,), (0,)], dtype)
        optimizer = AdamWScheduleFree(
            params, lr=0.1, weight_decay=0.1, state_format=state_format, backend=BACKEND
        )
        optimizer.monitor_drift(per)
        optimizer.train()
        for _, gradients in stream([p.shape for p in params], 2):
            set_gradients(params, gradients, dtype)
            on_host.accesses, on_host.calls = {}, []
            optimizer.step()
        seen.append(on_host.accesses)
        launches.append([call for call in on_host.calls if " " in call])
        results.append(snapshot(optimizer, params))
    assert seen[0] == seen[1]
    assert_same_bits(*results)
    name = str(dtype).removeprefix("torch.")
    if state_format == "float32":
        assert launches[0] == [f"launch step_no_momentum_{name}_{name}"]
        assert launches[1] == ["launch finalize", f"overlap update_no_momentum_{name}_{name}"]
    else:
        assert launches[0] == launches[1]


def test_the_same_bits_in_any_order_of_threads(on_host: Any) -> None:
    """Of tensors of many chunks, and of two launches, with a gradient that is missing."""
    found = []
    for reverse in (False, True, False):
        on_host.reverse = reverse
        params = make_params([(5 * LARGEST_CHUNK + 7,), (50, 3), (4,)], torch.float32)
        params += make_params([(777,)], torch.bfloat16)
        optimizer = AdamCScheduleFreePlus(params, lr=0.5, weight_decay=1.0, backend=BACKEND)
        optimizer.monitor_drift("tensor")
        optimizer.train()
        for loss, gradients in stream([p.shape for p in params], 2):
            gradients[2] = None
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
        figures = optimizer.metrics()
        found.append({k: str(v) for k, v in figures.items() if k.startswith(("tensor", "group"))})
    assert found[0] == found[1] == found[2]
    norm = float(params[0].detach().double().norm())
    assert figures["tensor_weight_norm"][0] == pytest.approx(norm, rel=1e-6)
    assert str(figures["tensor_weight_norm"][2]) == "nan"


def test_large_chunks() -> None:
    """Of a plan of a large model: 4096 elements, which a warp adds up in float32."""
    numel = 3 * LARGEST_CHUNK + 5

    def make() -> list[Entry]:
        torch.manual_seed(0)
        return [make_entry(torch.randn(numel), grad_dtype=torch.float32)]

    grads = [torch.randn(numel, generator=torch.Generator().manual_seed(1))]
    assert_near_eager(make, grads, random_run, chunk_size=LARGEST_CHUNK)


def test_a_skipped_update_leaves_the_slots(on_host: Any) -> None:
    backend, run = CudaOnHost(), random_run()
    entry = make_entry(torch.randn(600), grad_dtype=torch.float32)
    run.globals[Global.SKIP] = 1
    assert bool(watched(backend, [entry], [torch.randn(600)], run).isnan().all())
