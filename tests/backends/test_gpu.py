"""What only a GPU can show; the rest of the suite runs there too, with compiled Triton and CUDA kernels."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    ROOT,
    assert_same_bits,
    make_params,
    set_gradients,
    snapshot,
    stream,
    two_groups,
)
from torch import Tensor

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree
from sfplus_kernels.contract.formats import STATE_FORMATS

pytestmark = pytest.mark.gpu

COMPILED = ["cuda", "triton"]
GIB = 2**30
EVERY_KERNEL = ROOT / "tools" / "every_kernel.py"


def on_gpu(steps: int, shapes: list[Any], seed: int = 1) -> list[tuple[Tensor, list[Any]]]:
    return [
        (
            torch.tensor(loss, device="cuda"),
            [None if g is None else g.to("cuda", torch.float32) for g in gradients],
        )
        for loss, gradients in stream(shapes, steps, seed=seed)
    ]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where the host waits for the device. torch warns that the mode is a prototype when it is set:
    that must not become an error in front of the ``finally``, or every later test had the mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", [*COMPILED, "eager"])
def test_a_step_never_waits_for_the_device(backend: str) -> None:
    params = make_params(dtype=torch.float32, device="cuda")
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    optimizer.train()
    steps = on_gpu(100, [p.shape for p in params])
    set_gradients(params, steps[0][1])
    optimizer.step(loss=steps[0][0])  # compiles, allocates
    with no_waiting():
        for loss, gradients in steps[1:]:
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
    assert optimizer.metrics()["k"] == 100


def test_auto_picks_cuda() -> None:
    params = make_params([(3,)], torch.float32, "cuda")
    optimizer = AdamCScheduleFreePlus(params)
    optimizer.metrics()
    assert optimizer._runtime is not None
    assert optimizer._runtime.engine.backend_name == "cuda"


class Training:
    """A small model with static inputs, whose steps can be captured."""

    def __init__(self, backend: str, state_format: str = "float32") -> None:
        torch.manual_seed(0)
        width = 33 if state_format == "float32" else 64
        layers = [torch.nn.Linear(7, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)]
        if state_format != "float32":  # a matrix that is large enough for 8 bits
            layers[2:2] = [torch.nn.Linear(width, width), torch.nn.Tanh()]
        self.model = torch.nn.Sequential(*layers).cuda()
        self.x = torch.zeros(16, 7, device="cuda")
        self.lr = torch.tensor(0.1, device="cuda")
        self.optimizer = AdamCScheduleFreePlus(
            self.model.parameters(), lr=self.lr, backend=backend, state_format=state_format
        )
        self.optimizer.train()
        self.loss = torch.zeros((), device="cuda")

    def loss_at_hand(self) -> Tensor:
        return (self.model(self.x) - self.x.sum(1, keepdim=True)).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self.loss_at_hand()
        loss.backward()
        self.optimizer.step(loss=loss)
        self.loss.copy_(loss.detach())

    def feed(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        self.x.copy_(torch.randn(16, 7, generator=generator))

    def result(self) -> dict[str, Any]:
        return snapshot(self.optimizer, list(self.model.parameters()))


@pytest.mark.parametrize("state_format", STATE_FORMATS)
@pytest.mark.parametrize("backend", COMPILED)
def test_replays_equal_eager_steps_whatever_is_run_between_them(
    backend: str, state_format: str
) -> None:
    """What is rounded by chance is so by the count of steps, which a replay finds on the device."""
    results = []
    for captured in (False, True):
        training = Training(backend, state_format)
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


@pytest.mark.parametrize("backend", COMPILED)
def test_state_cannot_be_made_inside_a_graph(backend: str) -> None:
    training = Training(backend)
    training.loss_at_hand().backward()  # cuBLAS makes its handles, which it cannot inside a capture
    training.optimizer.zero_grad()
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
    gc.collect()
    torch.cuda.empty_cache()  # what an earlier test left there is not free to the driver
    if torch.cuda.mem_get_info()[0] < needed + 2 * GIB:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of free GPU memory")
    param = torch.nn.Parameter(torch.zeros(numel, dtype=torch.bfloat16, device="cuda"))
    param.grad = torch.zeros_like(param)
    places = torch.tensor([0, 2**31 - 1, 2**31, numel - 1], device="cuda")
    param.grad[places] = 1
    optimizer = AdamWScheduleFree([param], lr=0.5, backend=backend)
    optimizer.train()
    optimizer.step()
    param.grad = None
    moved = (param.detach() != 0).nonzero().flatten()
    assert torch.equal(moved, places)
    # z = y + b e, at these places only: five more tensors of this size would not fit
    state = optimizer.state[param]
    z = state["master_param"][places] + 0.9 * state["displacement"][places]
    torch.testing.assert_close(z, torch.full_like(z, -0.5), rtol=1e-5, atol=1e-6)
    del optimizer, state, param
    gc.collect()
    torch.cuda.empty_cache()


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


# -- what the driver's stand-in and the interpreter cannot show ----------------------------------------


def test_every_kernel_runs_and_touches_nothing_beside_its_tensors() -> None:
    """All that there are of full state, for the architecture that is here."""
    done = in_a_process(
        f"import runpy, sys; sys.argv = ['x']; runpy.run_path({str(EVERY_KERNEL)!r}, run_name='__main__')"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "guards touched: 0" in done.stdout


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


def test_a_fault_of_another_kernel_is_not_blamed_on_ours() -> None:
    done = in_a_process(
        "import torch, sfplus_kernels as s\n"
        "p = torch.nn.Parameter(torch.ones(9, device='cuda')); p.grad = torch.ones_like(p)\n"
        "o = s.SGDScheduleFree([p], lr=0.1, backend='cuda'); o.train(); o.step()\n"
        "torch.cuda.synchronize()\n"
        "torch.zeros(1, device='cuda')[torch.tensor([5], device='cuda')]\n"
        "import time; time.sleep(1)\n"
        "try:\n    o.step()\nexcept RuntimeError as error:\n    print(error)\n"
    )
    assert "an earlier operation on device 0 failed" in done.stdout, done.stdout + done.stderr


def test_a_fork_after_a_step_raises_and_does_not_hang() -> None:
    done = in_a_process(
        "import os, torch, sfplus_kernels as s\n"
        "p = torch.nn.Parameter(torch.ones(9, device='cuda')); p.grad = torch.ones_like(p)\n"
        "o = s.SGDScheduleFree([p], lr=0.1, backend='cuda'); o.train(); o.step()\n"
        "torch.cuda.synchronize()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n        o.step()\n"
        "    except RuntimeError:\n        os._exit(7)\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert done.stdout.strip() == "7", done.stdout + done.stderr


@pytest.mark.parametrize("backend", COMPILED)
def test_gradients_that_move_while_the_device_is_behind(backend: str) -> None:
    results = []
    for behind in (False, True):
        params = make_params([(301,), (77,)], torch.float32, "cuda")
        optimizer = AdamWScheduleFree(params, lr=0.1, backend=backend)
        optimizer.train()
        steps = on_gpu(200, [p.shape for p in params])  # all alive: no address is met twice
        if behind:
            torch.cuda._sleep(200_000_000)
        for _, gradients in steps:
            set_gradients(params, gradients)
            optimizer.step()
            if not behind:
                torch.cuda.synchronize()
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_plan_that_is_dropped_on_another_stream_than_its_own(backend: str) -> None:
    """Its memory is not given out while the main stream's kernels still read it."""
    results = []
    for disturbed in (False, True):
        params = make_params([(301,), (77,)], torch.float32, "cuda")
        optimizer = AdamWScheduleFree(params, lr=0.1, backend=backend)
        optimizer.train()
        steps = on_gpu(4, [p.shape for p in params])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            set_gradients(params, steps[0][1])
            optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        set_gradients(params, steps[1][1])
        if disturbed:
            torch.cuda._sleep(100_000_000)
        optimizer.step()
        params[1].grad = None
        optimizer.step()  # another set of gradients: another plan
        if disturbed:
            with torch.cuda.stream(side):  # and whoever asks that stream for memory fills it
                filled = [
                    torch.full((n,), -1, dtype=torch.int64, device="cuda") for n in (2, 16, 64) * 50
                ]
            assert filled
        torch.cuda.synchronize()
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", COMPILED)
def test_figures_without_waiting_and_a_capture(backend: str) -> None:
    """Asking whether a copy has arrived would invalidate the capture."""
    training = Training(backend)
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


@pytest.mark.parametrize("backend", COMPILED)
def test_torch_compile(backend: str) -> None:
    results = []
    for mode in (None, "default", "reduce-overhead"):
        training = Training(backend)
        step = training.step if mode is None else torch.compile(training.step, mode=mode)
        for number in range(5):
            training.feed(number)
            step()
        results.append(torch.cat([p.detach().flatten() for p in training.model.parameters()]))
    for compiled in results[1:]:
        torch.testing.assert_close(compiled, results[0], rtol=1e-5, atol=1e-6)


def test_cuda_and_triton_agree() -> None:
    results = []
    for backend in COMPILED:
        params = make_params([(3001,), (77,)], torch.float32, "cuda")
        optimizer = AdamWScheduleFree(
            params, lr=0.1, inner_momentum=0.9, weight_decay=0.1, backend=backend
        )
        optimizer.train()
        for _, gradients in on_gpu(1, [p.shape for p in params]):
            set_gradients(params, gradients)
            optimizer.step()
        results.append(torch.cat([p.detach() for p in params]))
    torch.testing.assert_close(*results, rtol=2 * torch.finfo(torch.float32).eps, atol=1e-9)


@pytest.mark.parametrize("backend", COMPILED)
def test_kernels_of_a_step(backend: str) -> None:
    """Ours, by their names; what torch adds is none."""
    params = make_params([(301,), (77,)], torch.float32, "cuda")
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
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


def test_two_processes_on_one_gpu() -> None:
    """By gloo, since NCCL refuses two ranks on one GPU: every process takes the same step."""
    port = 29000 + os.getpid() % 1000
    code = (
        "import os, torch, torch.distributed as d, sfplus_kernels as s\n"
        f"at = 'tcp://127.0.0.1:{port}'\n"
        "d.init_process_group('gloo', init_method=at, rank=int(os.environ['R']), world_size=2)\n"
        "p = torch.nn.Parameter(torch.ones(9, device='cuda'))\n"
        "p.grad = torch.full_like(p, 0.5)\n"
        "o = s.AdamCScheduleFreePlus([p], backend='cuda'); o.train()\n"
        "o.step(loss=torch.tensor(1.0 + int(os.environ['R']), device='cuda'))\n"
        "print(o.metrics()['function_value'], p.detach().double().sum().item())\n"
        "d.destroy_process_group()\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "R": str(rank),
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            },
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[0].split() for process in running]
    assert said[0] == said[1]
    assert said[0][0] == "1.5"  # the mean of the losses


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_no_context_is_made_on_the_current_device() -> None:
    """Half a GB of somebody else's GPU, in every process that trains on another one."""
    done = in_a_process(
        "import torch, sfplus_kernels as s\n"
        "before = torch._C._cuda_hasPrimaryContext(0)\n"
        "p = torch.nn.Parameter(torch.ones(9, device='cuda:1')); p.grad = torch.ones_like(p)\n"
        "o = s.SGDScheduleFree([p], lr=0.1, backend='cuda'); o.train(); o.step()\n"
        "print(before, torch._C._cuda_hasPrimaryContext(0))\n"
    )
    assert done.stdout.split() == ["False", "False"], done.stdout + done.stderr


GRAPHS = ["step alone", "shared pool", "bfloat16", "eval and train", "many captures", "grad scaler"]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("what", GRAPHS)
def test_graphs(backend: str, what: str) -> None:
    """Replays do what steps would, each way of making them."""
    dtype = torch.bfloat16 if what == "bfloat16" else torch.float32
    results = []
    for captured in (False, True):
        params = make_params([(301,), (77,)], dtype, "cuda")
        kind = {"max_grad_norm": 0.5} if what == "step alone" else {}
        optimizer = AdamCScheduleFreePlus(params, backend=backend, **kind)  # type: ignore[arg-type]
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
