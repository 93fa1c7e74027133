"""What only a GPU can show; the rest of the suite runs there too, with compiled Triton and CUDA kernels."""

from __future__ import annotations

import gc

import pytest
import torch
from gpu_support import COMPILED, EACH_FORMAT, EACH_KIND, KINDS, Kind, on_gpu
from support import assert_same_bits, make_params, set_gradients, snapshot, stream
from support.family import difference

pytestmark = pytest.mark.gpu

GIB = 2**30


@EACH_KIND
def test_auto_picks_cuda(kind: Kind) -> None:
    params = make_params([(3,)], torch.float32, "cuda")
    optimizer = kind.make(params)
    optimizer.metrics()
    assert optimizer._runtime is not None
    assert optimizer._runtime.engine.backend_name == "cuda"


@pytest.mark.parametrize("kind", [pytest.param(k, id=n) for n, k in KINDS.items() if n != "plus"])
@pytest.mark.parametrize("backend", COMPILED)
def test_more_than_two_to_the_31_elements(backend: str, kind: Kind) -> None:
    """In bfloat16; offsets of 32 bits would hit the wrong elements, or none."""
    numel = 2**31 + 5
    needed = numel * (2 + 2 + 4 * 3 + 4)  # parameter, gradient, e and moments, master_param
    gc.collect()
    torch.cuda.empty_cache()  # what an earlier test left there is not free to the driver
    if torch.cuda.mem_get_info()[0] < needed + 2 * GIB:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of free GPU memory")
    param = torch.nn.Parameter(torch.zeros(numel, dtype=torch.bfloat16, device="cuda"))
    param.grad = torch.zeros_like(param)
    places = torch.tensor([0, 2**31 - 1, 2**31, numel - 1], device="cuda")
    param.grad[places] = 1
    optimizer = kind.make([param], backend=backend, **{**kind.arguments, "lr": 0.5})
    optimizer.train()
    optimizer.step()
    param.grad = None
    moved = (param.detach() != 0).nonzero().flatten()
    assert torch.equal(moved, places)
    # z = y + b e, at these places only: five more tensors of this size would not fit
    state, gamma = optimizer.state[param], float(optimizer.param_groups[0]["scheduled_lr"])
    z = state["master_param"][places]
    if "displacement" in state:
        z = z + kind.arguments["betas"][0] * state["displacement"][places]
    assert 0 < gamma <= 0.5
    torch.testing.assert_close(z, torch.full_like(z, -gamma), rtol=1e-5, atol=1e-6)
    del optimizer, state, param
    gc.collect()
    torch.cuda.empty_cache()


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_ten_thousand_tensors(backend: str, kind: Kind) -> None:
    shapes = [(1 + i % 67,) for i in range(10_000)]
    results = []
    for name, device in ((backend, "cuda"), ("cpu", "cpu")):
        params = make_params(shapes, torch.float32, device)
        optimizer = kind.make(params, backend=name, **kind.arguments)
        optimizer.train()
        for loss, gradients in stream(shapes, 3):
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
        results.append([(p.detach().cpu(),) for p in params])
    assert difference(*results) < 1e-5


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_a_step_gives_the_same_bits_every_time(backend: str, kind: Kind) -> None:
    """Sums have their order, whichever multiprocessor is first."""
    results = []
    for _ in range(3):
        params = make_params([(300_001,), (77,)], torch.float32, "cuda")
        optimizer = kind.make(params, backend=backend, **kind.arguments)
        optimizer.train()
        for loss, gradients in on_gpu(5, [p.shape for p in params]):
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
        results.append(snapshot(optimizer, params))
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_another_device_than_the_current_one(backend: str, kind: Kind) -> None:
    params = make_params([(1001,)], torch.float32, "cuda:1")
    optimizer = kind.make(params, backend=backend, **kind.arguments)
    optimizer.train()
    with torch.cuda.device(0):
        params[0].grad = torch.ones_like(params[0])
        optimizer.step(loss=1.0)
        assert torch.cuda.current_device() == 0
    assert bool((params[0].detach() != make_params([(1001,)], torch.float32, "cuda:1")[0]).all())


@EACH_KIND
def test_cuda_and_triton_agree(kind: Kind) -> None:
    results = []
    for backend in COMPILED:
        params = make_params([(3001,), (77,)], torch.float32, "cuda")
        optimizer = kind.make(params, backend=backend, **kind.arguments)
        optimizer.train()
        for loss, gradients in on_gpu(1, [p.shape for p in params]):
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
        results.append([(p.detach(),) for p in params])
    assert difference(*results) < 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@EACH_FORMAT
@pytest.mark.parametrize("backend", COMPILED)
def test_drift_is_that_of_the_cpu(
    backend: str, kind: Kind, state_format: str, dtype: torch.dtype
) -> None:
    """And the same bits every time, of a tensor of many chunks and of small ones."""
    found = []
    for name, device in ((backend, "cuda"), (backend, "cuda"), ("cpu", "cpu")):
        params = make_params([(300_001,), (77,), (40, 64), (0,)], dtype, device)
        arguments = {**kind.arguments, "state_format": state_format}
        optimizer = kind.make(params, backend=name, **arguments)
        optimizer.monitor_drift("tensor")
        optimizer.train()
        for loss, gradients in stream([p.shape for p in params], 3):
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
        figures = {k: v for k, v in optimizer.metrics().items() if k.startswith("tensor_")}
        found.append(figures)
    assert str(found[0]) == str(found[1])
    assert found[0]["tensor_rotation"][0] > 0
    for key, values in found[2].items():
        assert found[0][key] == pytest.approx(values, rel=1e-3, nan_ok=True), key


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_kernels_of_a_step(backend: str, kind: Kind) -> None:
    """Ours, by their names; what torch adds is none."""
    params = make_params([(301,), (77,)], torch.float32, "cuda")
    optimizer = kind.make(params, backend=backend, **kind.arguments)
    optimizer.train()
    loss, gradients = on_gpu(1, [p.shape for p in params])[0]
    set_gradients(params, gradients)
    optimizer.step(loss=loss)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step(loss=loss)
        torch.cuda.synchronize()
    kernels = [event.key for event in profile.key_averages() if "Memcpy" not in event.key]
    ours = [k for k in kernels if k.startswith(("reduce", "finalize", "update", "step"))]
    assert 0 < len(ours) <= 2, kernels
