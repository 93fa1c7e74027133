"""What only a GPU can show; the rest of the suite runs there too, with compiled Triton and CUDA kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    assert_same_bits,
    make_params,
    set_gradients,
    snapshot,
    stream,
    two_groups,
)
from torch import Tensor

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

pytestmark = pytest.mark.gpu

COMPILED = ["cuda", "triton"]
GIB = 2**30


def on_gpu(steps: int, shapes: list[Any], seed: int = 1) -> list[tuple[Tensor, list[Any]]]:
    return [
        (
            torch.tensor(loss, device="cuda"),
            [None if g is None else g.to("cuda", torch.float32) for g in gradients],
        )
        for loss, gradients in stream(shapes, steps, seed=seed)
    ]


@pytest.mark.parametrize("backend", [*COMPILED, "eager"])
def test_a_step_never_waits_for_the_device(backend: str) -> None:
    params = make_params(dtype=torch.float32, device="cuda")
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    optimizer.train()
    steps = on_gpu(100, [p.shape for p in params])
    set_gradients(params, steps[0][1])
    optimizer.step(loss=steps[0][0])  # compiles, allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss, gradients in steps[1:]:
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.metrics()["k"] == 100


def test_auto_picks_cuda() -> None:
    params = make_params([(3,)], torch.float32, "cuda")
    optimizer = AdamCScheduleFreePlus(params)
    optimizer.metrics()
    assert optimizer._runtime is not None
    assert optimizer._runtime.engine.backend_name == "cuda"


class Training:
    """A small model with static inputs, whose steps can be captured."""

    def __init__(self, backend: str) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(7, 33), torch.nn.Tanh(), torch.nn.Linear(33, 1)
        ).cuda()
        self.x = torch.zeros(16, 7, device="cuda")
        self.lr = torch.tensor(0.1, device="cuda")
        self.optimizer = AdamCScheduleFreePlus(self.model.parameters(), lr=self.lr, backend=backend)
        self.optimizer.train()
        self.loss = torch.zeros((), device="cuda")

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = (self.model(self.x) - self.x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        self.optimizer.step(loss=loss)
        self.loss.copy_(loss.detach())

    def feed(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        self.x.copy_(torch.randn(16, 7, generator=generator))

    def result(self) -> dict[str, Any]:
        return snapshot(self.optimizer, list(self.model.parameters()))


@pytest.mark.parametrize("backend", COMPILED)
def test_replays_equal_eager_steps_whatever_is_run_between_them(backend: str) -> None:
    results = []
    for captured in (False, True):
        training = Training(backend)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for number in range(3):
                training.feed(number)
                training.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captured:
            training.optimizer.zero_grad()
            with torch.cuda.graph(graph):
                training.step()
        for number in range(3, 15):
            training.feed(number)
            training.lr.fill_(0.1 / number)
            if captured and number % 3:
                graph.replay()
            else:  # between replays: gradients elsewhere, and a refilled table
                training.step()
        torch.cuda.synchronize()
        results.append(training.result())
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", COMPILED)
def test_state_cannot_be_made_inside_a_graph(backend: str) -> None:
    training = Training(backend)
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match=r"run one step.*before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        training.step()


@pytest.mark.parametrize("backend", COMPILED)
def test_two_streams(backend: str) -> None:
    """Two optimizers side by side give what they give one after the other."""
    results = []
    for streams in ([None, None], [torch.cuda.Stream(), torch.cuda.Stream()]):
        trainings = [Training(backend), Training(backend)]
        torch.cuda.synchronize()
        for number in range(10):
            for training, own in zip(trainings, streams, strict=True):
                with torch.cuda.stream(own):
                    training.feed(number)
                    training.step()
        torch.cuda.synchronize()
        results.append([training.result() for training in trainings])
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", COMPILED)
def test_more_than_two_to_the_31_elements(backend: str) -> None:
    """In bfloat16; offsets of 32 bits would hit the wrong elements, or none."""
    numel = 2**31 + 5
    needed = numel * (2 + 2 + 4 * 3 + 4)  # parameter, gradient, e and moments, master_param
    if torch.cuda.mem_get_info()[0] < needed + 2 * GIB:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of free GPU memory")
    param = torch.nn.Parameter(torch.zeros(numel, dtype=torch.bfloat16, device="cuda"))
    param.grad = torch.zeros_like(param)
    places = torch.tensor([0, 2**31 - 1, 2**31, numel - 1], device="cuda")
    param.grad[places] = 1
    optimizer = AdamWScheduleFree([param], lr=0.5, backend=backend)
    optimizer.train()
    optimizer.step()
    moved = (param.detach() != 0).nonzero().flatten()
    assert torch.equal(moved, places)
    assert optimizer.iterates(param).z[places].allclose(torch.tensor(-0.5, device="cuda"))


@pytest.mark.parametrize("backend", COMPILED)
def test_ten_thousand_tensors(backend: str) -> None:
    shapes = [(1 + i % 67,) for i in range(10_000)]
    results = []
    for name, device in ((backend, "cuda"), ("cpu", "cpu")):
        params = make_params(shapes, torch.float32, device)
        optimizer = AdamWScheduleFree(params, lr=0.1, backend=name)
        optimizer.train()
        for _, gradients in stream(shapes, 3):
            set_gradients(params, gradients)
            optimizer.step()
        results.append(torch.cat([p.detach().cpu() for p in params]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_step_gives_the_same_bits_every_time(backend: str) -> None:
    """Sums have their order, whichever multiprocessor is first."""
    results = []
    for _ in range(3):
        params = make_params([(300_001,), (77,)], torch.float32, "cuda")
        optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING)
        optimizer.train()
        for loss, gradients in on_gpu(5, [p.shape for p in params]):
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
        results.append(snapshot(optimizer, params))
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("backend", COMPILED)
def test_another_device_than_the_current_one(backend: str) -> None:
    params = make_params([(1001,)], torch.float32, "cuda:1")
    optimizer = AdamWScheduleFree(params, lr=0.1, backend=backend)
    optimizer.train()
    with torch.cuda.device(0):
        params[0].grad = torch.ones_like(params[0])
        optimizer.step()
        assert torch.cuda.current_device() == 0
    assert bool((params[0].detach() != make_params([(1001,)], torch.float32, "cuda:1")[0]).all())
