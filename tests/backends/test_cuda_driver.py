"""How the CUDA kernels are launched and loaded, seen by a driver that is ours (see ``cuda_on_host``)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    ROOT,
    allow_gradients_of_any_dtype,
    assert_same_bits,
    make_params,
    run,
    set_gradients,
    snapshot,
    stream,
)

pytest.importorskip("pybind11")
import cuda_on_host
import on_host_entries
from cuda_on_host import CudaOnHost
from on_host_entries import BACKEND, CPU, FLOATS, make_entry, random_run, snapshot_of

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.contract.layout import Move

on_host = on_host_entries.on_host
pytestmark = pytest.mark.usefixtures("on_host")


def ready_plan(numel: int = 3, dtype: torch.dtype = torch.float32) -> tuple[CudaOnHost, Any]:
    backend = CudaOnHost()
    plan = backend.plan([make_entry(torch.randn(numel).to(dtype), grad_dtype=dtype)], CPU)
    backend.set_gradients(plan, [torch.randn(numel).to(dtype)])
    return backend, plan


def all_passes(backend: CudaOnHost, plan: Any) -> dict[str, Any]:
    return {
        "reduce_float32_float32": lambda: backend.reduce(plan, with_e=True),
        "finalize": lambda: backend.finalize(plan, random_run(), None),
        "update_adam_float32_float32": lambda: backend.update(plan, random_run()),
        "interpolate_to_x_float32": lambda: backend.interpolate(plan, random_run(), Move.TO_X),
    }


def test_a_failed_launch_names_the_kernel_and_gives_cudas_text(on_host: Any) -> None:
    text = (
        r"'{}' on device 0 failed: too many resources requested for launch \(CUDA_ERROR_LAUNCH_OUT"
    )
    for name, action in all_passes(*ready_plan()).items():
        on_host.fail_next = 701
        with pytest.raises(RuntimeError, match=text.format(name)):
            action()


def test_a_failure_of_somebody_elses_kernel_is_not_blamed_on_ours(on_host: Any) -> None:
    """CUDA reports what an earlier kernel did wrong at any later call."""
    text = r"^an earlier operation on device 0 failed: an illegal memory access.*CUDA_LAUNCH_BLOCKING=1"
    for name, action in all_passes(*ready_plan()).items():
        on_host.fail_next = 700
        with pytest.raises(RuntimeError, match=text) as caught:
            action()
        assert "failed: launching" not in str(caught.value)
        assert f"when the CUDA kernel '{name}' was to be launched" in str(caught.value)


@pytest.mark.parametrize("before", [5, -1])
def test_the_current_context_is_put_back_and_no_other_is_made(on_host: Any, before: int) -> None:
    """Parameters on device 0, as all are on the host, while another device is current, or none."""
    on_host.device = before
    params = make_params([(3,)])
    run(AdamCScheduleFreePlus(params, backend=BACKEND), params, 2)
    assert on_host.device == before
    backend, plan = ready_plan()
    on_host.fail_next = 701
    with pytest.raises(RuntimeError, match="failed"):
        backend.update(plan, random_run())
    assert on_host.device == before
    others = "none" if before < 0 else str(before)
    assert set(on_host.calls) - {"current 0", f"current {others}"} == {
        call for call in on_host.calls if call.startswith(("launch", "overlap"))
    }  # nothing is retained: only the device that the kernels were loaded for has a context of ours


def test_loading_leaves_the_current_context_alone(on_host: Any) -> None:
    native = cuda_on_host.module()
    on_host.device = -1
    native.cuda_load(7, b"any")
    assert on_host.calls == ["retain 7", "current 7", "load text", "current none"]
    assert on_host.device == -1
    native.cuda_load(7, b"any")  # there already
    assert len(on_host.calls) == 4
    with pytest.raises(RuntimeError, match="CUDA device 64; expected 0 to 63"):
        native.cuda_load(64, b"any")
    with pytest.raises(RuntimeError, match="no kernels were loaded for CUDA device 3"):
        native.cuda_finalize(native.Finish(0, 0, 0, 0, native.Run(*[0] * 8), 0, 0, 1.0, 0), 3, 0)


def launches_of(on_host: Any, action: Any) -> list[str]:
    on_host.calls = []
    action()
    return [str(call) for call in on_host.calls]


def test_two_kernels_make_a_step_and_a_third_one_for_another_pair_of_dtypes(on_host: Any) -> None:
    """However many tensors there are: the last block of reduce does what finalize would."""
    params = make_params([(9,)] * 50, torch.float32)
    optimizer = AdamCScheduleFreePlus(params, backend=BACKEND)
    run(optimizer, params, 1)
    said = launches_of(on_host, lambda: run(optimizer, params, 1))
    assert said == ["launch reduce_float32_float32", "overlap update_adam_float32_float32"]
    params += make_params([(5,)] * 9, torch.bfloat16)
    optimizer = AdamCScheduleFreePlus(params, backend=BACKEND)
    run(optimizer, params, 1)
    assert launches_of(on_host, lambda: run(optimizer, params, 1)) == [
        "launch reduce_float32_float32",
        "launch reduce_float32_bfloat16",
        "overlap update_adam_float32_float32",
        "overlap update_adam_bfloat16_bfloat16",
    ]


@pytest.mark.parametrize(
    ("make", "kernel"),
    [
        (lambda p: AdamWScheduleFree(p, backend=BACKEND), "no_momentum"),
        (lambda p: AdamWScheduleFree(p, inner_momentum=0.5, backend=BACKEND), "adam"),
        (lambda p: SGDScheduleFree(p, lr=0.1, backend=BACKEND), "sgd"),
    ],
)
def test_one_kernel_makes_a_step_without_sums(on_host: Any, make: Any, kernel: str) -> None:
    params = make_params([(9,)] * 50, torch.float32)
    optimizer = make(params)
    optimizer.train()

    def step() -> None:
        set_gradients(params, [torch.randn(9) for _ in params])
        optimizer.step()

    step()
    assert launches_of(on_host, step) == [f"launch step_{kernel}_float32_float32"]


def test_a_whole_step_of_an_unusual_pair_of_dtypes_is_two_kernels(on_host: Any) -> None:
    """With the bits that it has where the gradients come in the parameter's dtype."""
    results = []
    kernels = {
        torch.float32: ["launch step_no_momentum_float32_float32"],
        torch.float16: ["launch finalize", "overlap update_no_momentum_float32_float16"],
    }
    for dtype, expected in kernels.items():
        params = make_params([(9,), (700,)], torch.float32)
        for param in params:
            allow_gradients_of_any_dtype(param)
        optimizer = AdamWScheduleFree(params, lr=0.1, weight_decay=0.1, backend=BACKEND)
        optimizer.train()
        for _, gradients in stream([p.shape for p in params], 3):
            set_gradients(params, [g.half() for g in gradients if g is not None], dtype)
            said = launches_of(on_host, optimizer.step)
        assert said == expected
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)


def test_kernels_begin_early_only_where_gpu_and_driver_can() -> None:
    native = cuda_on_host.module()
    for device, capability, driver in (
        (20, (8, 0), 12090),
        (21, (9, 0), 12020),
        (22, (9, 0), 12030),
    ):
        native.settings.capability, native.settings.driver_version = capability, driver
        native.cuda_load(device, b"any")
        native.settings.calls = []
        table = native.Table(0, 0, 0, 0, 512, 0)
        finish = native.Finish(0, 0, 0, 5000, native.Run(*[0] * 8), 0, 0, 1.0, 0)
        native.settings.fail_next = 701
        with pytest.raises(RuntimeError, match="'finalize'"):
            native.cuda_finalize(finish, device, 0)
        assert (
            native.cuda_update(table, 0, 1, 1, *[True] * 3, finish, device, 0) is None
        )  # no chunk
        assert native.settings.calls[-2:] == ["launch finalize", "current 0"]
    native.settings.capability, native.settings.driver_version = (9, 0), 12090


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_loss_is_read_where_it_is(on_host: Any, dtype: torch.dtype) -> None:
    """Without a copy of it, and whatever its dtype."""
    results = []
    for loss in (torch.tensor(2.75, dtype=dtype), 2.75):
        params = make_params([(9,), (700,)], torch.float32)
        optimizer = AdamCScheduleFreePlus(params, backend=BACKEND)
        optimizer.train()
        for _ in range(3):
            set_gradients(params, [torch.ones_like(p) for p in params])
            optimizer.step(loss=loss)
        assert optimizer.metrics()["function_value"] == 2.75
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)


@pytest.mark.parametrize("n_tensors", [3, 4100])
def test_a_step_at_once_gives_the_bits_of_the_passes_one_by_one(
    monkeypatch: pytest.MonkeyPatch, n_tensors: int
) -> None:
    """Also with more tensors than one block counts, and the tickets are as they were afterwards."""
    results = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(CudaOnHost, "steps_at_once", lambda self, plan: False)
        for name in ("adamc", "adamw"):
            params = make_params([(3,)] * n_tensors, torch.float32)
            optimizer: Any = (
                AdamCScheduleFreePlus(params, backend=BACKEND, max_grad_norm=1.0)
                if name == "adamc"
                else AdamWScheduleFree(params, backend=BACKEND, weight_decay=0.1)
            )
            optimizer.train()
            for k in range(2):
                set_gradients(params, [torch.full((3,), k + i / 7) for i in range(n_tensors)])
                optimizer.step(**({"loss": 1.5} if name == "adamc" else {}))
            results.append(snapshot_of(optimizer, params))
            plan: Any = optimizer._runtime.kept.plan
            assert plan.table.tickets.tolist() == [0, 0, 0]
    assert_same_bits(results[0], results[2])
    assert_same_bits(results[1], results[3])


PROBE = """
#include <cuda.h>
#include "cuda/driver_abi.h"
namespace abi = sfplus::cuda::abi;
#define SAME(a, b) static_assert(static_cast<int>(a) == static_cast<int>(b), #a)
SAME(sizeof(abi::LaunchConfig), sizeof(CUlaunchConfig));
SAME(offsetof(abi::LaunchConfig, stream), offsetof(CUlaunchConfig, hStream));
SAME(offsetof(abi::LaunchConfig, attributes), offsetof(CUlaunchConfig, attrs));
SAME(offsetof(abi::LaunchConfig, n_attributes), offsetof(CUlaunchConfig, numAttrs));
SAME(sizeof(abi::LaunchAttribute), sizeof(CUlaunchAttribute));
SAME(offsetof(abi::LaunchAttribute, flag), offsetof(CUlaunchAttribute, value));
SAME(abi::kProgrammaticSerialization, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
SAME(abi::kCapabilityMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(abi::kCapabilityMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
"""


def test_the_drivers_interface_is_as_nvidias_header_has_it(tmp_path: Path) -> None:
    """The package's build has no such header; Triton brings one."""
    found = importlib.util.find_spec("triton")
    header = Path(str(found and found.origin)).parent / "backends" / "nvidia" / "include"
    if not (header / "cuda.h").exists():
        pytest.skip("needs cuda.h, which Triton brings")
    source = tmp_path / "probe.cpp"
    source.write_text(PROBE)
    compiler = os.environ.get("CXX") or "c++"
    paths = [f"-I{header}", f"-I{cuda_on_host.CSRC}"]
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", *paths, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_built_extension_steps_through_a_driver(tmp_path: Path) -> None:
    """The one that is shipped, whose code is handed to the driver's stand-in; the host's kernels run."""
    from sfplus_kernels.backends.native import _C

    if _C.CUDA_MISSING:
        pytest.skip(f"no CUDA kernels: {_C.CUDA_MISSING}")
    (tmp_path / "libcuda.so.1").symlink_to(cuda_on_host.module().__file__)
    program = (
        "import ctypes, torch\n"
        "from sfplus_kernels.backends import machine_code\n"
        "from sfplus_kernels.backends.native import _C\n"
        "from sfplus_kernels.backends.cuda import CudaBackend\n"
        "from sfplus_kernels.contract.backend import Entry, RunState\n"
        "print(_C.cuda_driver_version(), _C.cuda_capability(0), machine_code.device_problem(_C, 0))\n"
        "p, e, g = torch.ones(9), torch.zeros(9), torch.ones(9)\n"
        "backend, cpu = CudaBackend(), torch.device('cpu')\n"
        "plan = backend.plan([Entry(p, None, None, e, None, 0, 0, torch.float32)], cpu)\n"
        "backend.set_gradients(plan, [g])\n"
        "run = RunState.zeros(1, 1, cpu); run.hyper[0, 0] = 0.5; run.settings[0] = 1; run.settings[5] = 1\n"
        "backend.step(plan, run, sums=False, with_e=False, loss=None)\n"
        "print(p.tolist()[0] < 1, float(run.groups[0, 0]))\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout.splitlines() == ["12000 (9, 0) None", "True 1.0"], done.stdout + done.stderr
