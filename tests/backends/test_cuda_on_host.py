"""The CUDA kernels' logic, on the CPU: csrc/cuda compiled by the C++ compiler (see ``cuda_on_host``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import assert_same_bits, make_params, set_gradients, stream, two_groups

pytest.importorskip("pybind11")
import cuda_on_host
import on_host_entries
import test_family
import test_family_inputs
import test_parity
import test_plain
import test_projection
from cuda_on_host import CudaOnHost
from on_host_entries import BACKEND, CPU, FLOATS, make_entry, random_run, snapshot_of

from sfplus_kernels import AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.backends import registry
from sfplus_kernels.contract.layout import Move

on_host = on_host_entries.on_host
pytestmark = pytest.mark.usefixtures("on_host")
STEPS = 16


@pytest.fixture(autouse=True)
def _fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Than where the kernels are compiled for speed."""
    monkeypatch.setattr(test_parity, "steps_for", lambda _, steps: min(steps, STEPS))
    monkeypatch.setattr(test_plain, "steps_for", lambda _, steps: min(steps, STEPS))
    monkeypatch.setitem(test_family.STEPS, BACKEND, STEPS)


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
