"""CUDA graphs, which only a GPU can replay, and torch.compile on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_support import COMPILED, EACH_FORMAT, EACH_KIND, KINDS, Kind, Training
from support import assert_same_bits, make_params, snapshot
from torch import Tensor

pytestmark = pytest.mark.gpu


@EACH_FORMAT
@pytest.mark.parametrize("backend", COMPILED)
def test_replays_equal_eager_steps_whatever_is_run_between_them(
    backend: str, kind: Kind, state_format: str
) -> None:
    """What is rounded by chance is so by the count of steps, which a replay finds on the device."""
    results = []
    for captured in (False, True):
        training = Training(kind, backend, state_format)
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
        assert state_format in training.optimizer.state_formats()
    assert_same_bits(*results)


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_state_cannot_be_made_inside_a_graph(backend: str, kind: Kind) -> None:
    training = Training(kind, backend)
    training.loss_at_hand().backward()  # cuBLAS makes its handles, which it cannot inside a capture
    training.optimizer.zero_grad()
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match=r"run one step.*before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        training.step()


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_figures_without_waiting_and_a_capture(backend: str, kind: Kind) -> None:
    """Asking whether a copy has arrived would invalidate the capture."""
    training = Training(kind, backend)
    training.step()
    training.optimizer.metrics(wait=False)
    training.step()
    training.optimizer.zero_grad()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.step()
        assert isinstance(training.optimizer.metrics(wait=False), dict)
    before = training.optimizer.metrics()["k"]
    graph.replay()
    assert training.optimizer.metrics()["k"] == float(before) + 1  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [pytest.param(KINDS[n], id=n) for n in ("plus", "adamw")])
@pytest.mark.parametrize("backend", COMPILED)
def test_torch_compile(backend: str, kind: Kind) -> None:
    """Two of the classes, for to compile takes long: one with a pass for sums, one without averages."""
    results = []
    for mode in (None, "default", "reduce-overhead"):
        training = Training(kind, backend)
        step = training.step if mode is None else torch.compile(training.step, mode=mode)
        for number in range(5):
            training.feed(number)
            step()
        results.append(torch.cat([p.detach().flatten() for p in training.model.parameters()]))
    for compiled in results[1:]:
        torch.testing.assert_close(compiled, results[0], rtol=1e-5, atol=1e-6)


GRAPHS = ["step alone", "shared pool", "bfloat16", "eval and train", "many captures", "grad scaler"]


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("what", GRAPHS)
def test_graphs(backend: str, what: str, kind: Kind) -> None:
    """Replays do what steps would, each way of making them."""
    dtype = torch.bfloat16 if what == "bfloat16" else torch.float32
    results = []
    for captured in (False, True):
        params = make_params([(301,), (77,)], dtype, "cuda")
        clipped = {"max_grad_norm": 0.5} if what == "step alone" else {}
        optimizer = kind.make(params, backend=backend, **kind.arguments, **clipped)
        optimizer.train()
        loss = torch.tensor(2.0, device="cuda")
        for p in params:
            p.grad = torch.ones_like(p)
        scaler = torch.amp.GradScaler("cuda", init_scale=8.0, enabled=what == "grad scaler")
        scaler.scale(loss)  # makes its tensors

        def step(optimizer: Any = optimizer, loss: Tensor = loss, scaler: Any = scaler) -> None:
            scaler.step(optimizer, loss=loss)
            scaler.update()
            if what == "eval and train":
                optimizer.eval()
                optimizer.train()

        step()
        torch.cuda.synchronize()
        if captured:
            graphs, pool = [], None
            for _ in range({"shared pool": 2, "many captures": 8}.get(what, 1)):
                graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(graphs[-1], pool=pool):
                    step()
                pool = graphs[-1].pool() if what == "shared pool" else None
        for number in range(8):
            graphs[number % len(graphs)].replay() if captured else step()
        torch.cuda.synchronize()
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)
