"""The CUDA kernels' logic, on the CPU: csrc/cuda compiled by the C++ compiler (see ``cuda_on_host``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
import cuda_on_host
import test_family
import test_family_inputs
import test_parity
import test_plain
import test_projection
from cuda_on_host import CudaOnHost

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.backends import registry
from sfplus_kernels.backends.cuda import LARGEST_CHUNK, SMALLEST_CHUNK, WARPS_PER_BLOCK
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS, Global, Move, Sum
from sfplus_kernels.engine.engine import Engine

pytestmark = [
    pytest.mark.usefixtures("on_host"),
]
CPU = torch.device("cpu")
BACKEND = cuda_on_host.RECORD.name
STEPS = 16
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for the GPU, and its kernels under the name ``cuda_on_host``."""
    monkeypatch.setitem(registry._RECORDS, BACKEND, cuda_on_host.RECORD)
    monkeypatch.setattr(test_parity, "steps_for", lambda _, steps: min(steps, STEPS))
    monkeypatch.setattr(test_plain, "steps_for", lambda _, steps: min(steps, STEPS))
    monkeypatch.setitem(test_family.STEPS, BACKEND, STEPS)
    settings = cuda_on_host.module().settings
    settings.reverse, settings.fail_next, settings.device, settings.calls = False, 0, 0, []
    yield settings
    settings.reverse, settings.fail_next = False, 0


# -- the same tests as the other backends --------------------------------------------------------------


@pytest.mark.parametrize("case", test_parity.CASES)
def test_float64_agrees_with_the_reference(case: str) -> None:
    test_parity.test_float64_agrees_with_the_reference(BACKEND, case, 0.4)


@pytest.mark.parametrize("name", test_family.FAMILY)
def test_float64_agrees_with_the_oracle(name: str) -> None:
    test_family.test_float64_agrees_with_the_oracle(BACKEND, name, "all at once")


@pytest.mark.parametrize("name", test_plain.PLAIN)
def test_without_averaging_it_is_torchs(name: str) -> None:
    test_plain.test_torchs_trajectory(name, BACKEND, True)
    test_plain.test_other_dtypes_are_near_float64(name, BACKEND, torch.bfloat16)


@pytest.mark.parametrize("name", test_plain.CORRECTED)
def test_corrected_decay_is_the_references(name: str) -> None:
    test_plain.test_corrected_decay_is_the_references(name, BACKEND, None)


@pytest.mark.parametrize("case", ["plus", "sgd, averaged", "adamw", "sgd without momentum"])
def test_rows_of_a_fixed_norm(case: str) -> None:
    test_projection.test_the_references_trajectory(BACKEND, case)


def test_rows_of_a_fixed_norm_in_other_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        test_projection.test_z_on_the_sphere_x_and_y_within("adamw, averaged", dtype, BACKEND)
    test_projection.test_torchs_adamw_with_a_projection_after_it(BACKEND, torch.bfloat16)
    test_projection.test_layouts_in_memory(BACKEND, "SGD")
    test_projection.test_a_skipped_step_projects_nothing(BACKEND)


@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("param", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_good_as_plain_torch(param: torch.dtype, grad: torch.dtype) -> None:
    test_parity.test_low_precision_is_as_good_as_plain_torch(BACKEND, param, grad)


@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize("name", ["adamw", "sgd closure"])
def test_layouts_in_memory(name: str, skip_nonfinite: bool) -> None:
    test_family_inputs.test_layouts_in_memory(BACKEND, name, skip_nonfinite)


# -- beside the C++ kernels, whose arithmetic is the same ----------------------------------------------


@pytest.mark.parametrize("grad", FLOATS)
@pytest.mark.parametrize("param", FLOATS)
@pytest.mark.parametrize("momentum", ["adam", "adam without momentum", "sgd"])
def test_same_bits_as_the_cpu_backend(param: torch.dtype, grad: torch.dtype, momentum: str) -> None:
    """Where no sums enter: those are formed in another order."""
    results = []
    for backend in ("cpu", BACKEND):
        params = make_params([(0,), (1,), (700, 3), (), (513,), (5, 3, 7), (0,)], param)
        groups = two_groups(params)
        for name in ("eps", "betas", "c_warmup"):
            groups[1].pop(name)
        optimizer: Any
        if momentum == "sgd":
            optimizer = SGDScheduleFree(groups, lr=0.1, weight_decay=0.1, backend=backend)
        else:
            inner = 0.8 if momentum == "adam" else 0.0
            optimizer = AdamWScheduleFree(
                groups, lr=0.1, weight_decay=0.1, inner_momentum=inner, backend=backend
            )
        optimizer.train()
        for k, (_, gradients) in enumerate(stream([p.shape for p in params], 6, missing=0.3)):
            set_gradients(params, gradients, grad)
            optimizer.step()
            if k == 3:  # there and back, at a point where y is rounded
                optimizer.eval()
                optimizer.train()
        results.append(snapshot_of(optimizer, params))
    assert_same_bits(*results)


def snapshot_of(optimizer: Any, params: list[Tensor]) -> Any:
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.pop("skipped_steps", None)
        group.pop("consecutive_skipped_steps", None)
    return [p.detach().clone() for p in params], state


def make_entry(param: Tensor, offset: int = 0, grad_dtype: torch.dtype | None = None) -> Entry:
    """Random state; its memory begins ``offset`` elements after an aligned address."""
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    state = [torch.randn(param.numel() + offset, dtype=dtype)[offset:] for _ in range(4)]
    master = state[3] if param.dtype != dtype else None
    return Entry(param, state[0], state[1].abs(), state[2], master, 0, 0, grad_dtype)


def random_run() -> RunState:
    generator = torch.Generator().manual_seed(3)
    state = RunState.zeros(1, 1, CPU)
    for buffer in (state.group_coefs, state.tensor_coefs, state.tensors, state.hyper):
        buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) / 2)
    return state


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("move", Move)
@pytest.mark.parametrize("dtype", FLOATS)
def test_moves_are_those_of_the_cpu_backend(dtype: torch.dtype, move: Move, offset: int) -> None:
    results = []
    for backend in (registry.select("cpu", CPU)[1], CudaOnHost()):
        torch.manual_seed(0)
        entry = make_entry(
            torch.randn(1000 + offset, dtype=torch.float64).to(dtype)[offset:], offset
        )
        backend.interpolate(backend.plan([entry], CPU), random_run(), move)
        results.append([entry.param, entry.displacement, entry.y])
    assert_same_bits(*results)


@pytest.mark.skipif(
    not cuda_on_host.contracts(), reason="needs a processor with fused multiply-adds"
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_moves_are_the_same_where_products_and_sums_are_fused(dtype: torch.dtype) -> None:
    """As a GPU's compiler does: eval() is to be what averaged_state_dict() makes of y and e, to the bit."""
    results = []
    for contracted in (False, True):
        torch.manual_seed(0)
        entry = make_entry(torch.randn(1000, dtype=torch.float64).to(dtype))
        backend = CudaOnHost(contracted)
        for move in Move:
            backend.interpolate(backend.plan([entry], CPU), random_run(), move)
        results.append([entry.param, entry.displacement, entry.y])
    assert_same_bits(*results)


@pytest.mark.skipif(
    not cuda_on_host.contracts(), reason="needs a processor with fused multiply-adds"
)
@pytest.mark.parametrize("case", ["defaults", "everything"])
def test_a_step_with_fused_products_agrees_with_the_reference(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setitem(registry._RECORDS, BACKEND, cuda_on_host.CONTRACTED_RECORD)
    registry._load.cache_clear()
    try:
        test_parity.test_float64_agrees_with_the_reference(BACKEND, case, 0.4)
    finally:
        registry._load.cache_clear()


# -- memory ----------------------------------------------------------------------------------------------


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


# -- reduce and finalize -----------------------------------------------------------------------------------


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
