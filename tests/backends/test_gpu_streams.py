"""A GPU that is behind its host: nobody waits for it, and nothing is overtaken."""

from __future__ import annotations

import pytest
import torch
from gpu_support import COMPILED, EACH_KIND, Kind, Training, no_waiting, on_gpu
from support import assert_same_bits, make_params, set_gradients, snapshot

pytestmark = pytest.mark.gpu


@EACH_KIND
@pytest.mark.parametrize("backend", [*COMPILED, "eager"])
def test_a_step_never_waits_for_the_device(backend: str, kind: Kind) -> None:
    params = make_params(dtype=torch.float32, device="cuda")
    optimizer = kind.make(kind.groups(params), backend=backend, **kind.arguments)
    optimizer.train()
    steps = on_gpu(100, [p.shape for p in params])
    set_gradients(params, steps[0][1])
    optimizer.step(loss=steps[0][0])  # compiles, allocates
    with no_waiting():
        for loss, gradients in steps[1:]:
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
    assert optimizer.metrics()["k"] == 100


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_two_streams(backend: str, kind: Kind) -> None:
    """Two optimizers side by side give what they give one after the other."""
    results = []
    for streams in ([None, None], [torch.cuda.Stream(), torch.cuda.Stream()]):
        trainings = [Training(kind, backend), Training(kind, backend)]
        torch.cuda.synchronize()
        for number in range(10):
            for training, own in zip(trainings, streams, strict=True):
                with torch.cuda.stream(own):
                    training.feed(number)
                    training.step()
        torch.cuda.synchronize()
        results.append([training.result() for training in trainings])
    assert_same_bits(*results)


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_gradients_that_move_while_the_device_is_behind(backend: str, kind: Kind) -> None:
    results = []
    for behind in (False, True):
        params = make_params([(301,), (77,)], torch.float32, "cuda")
        optimizer = kind.make(params, backend=backend, **kind.arguments)
        optimizer.train()
        steps = on_gpu(200, [p.shape for p in params])  # all alive: no address is met twice
        if behind:
            torch.cuda._sleep(200_000_000)
        for loss, gradients in steps:
            set_gradients(params, gradients)
            optimizer.step(loss=loss)
            if not behind:
                torch.cuda.synchronize()
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)


@EACH_KIND
@pytest.mark.parametrize("backend", COMPILED)
def test_a_plan_that_is_dropped_on_another_stream_than_its_own(backend: str, kind: Kind) -> None:
    """Its memory is not given out while the main stream's kernels still read it."""
    results = []
    for disturbed in (False, True):
        params = make_params([(301,), (77,)], torch.float32, "cuda")
        optimizer = kind.make(params, backend=backend, **kind.arguments)
        optimizer.train()
        steps = on_gpu(4, [p.shape for p in params])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            set_gradients(params, steps[0][1])
            optimizer.step(loss=steps[0][0])
        torch.cuda.current_stream().wait_stream(side)
        set_gradients(params, steps[1][1])
        if disturbed:
            torch.cuda._sleep(100_000_000)
        optimizer.step(loss=steps[1][0])
        params[1].grad = None
        optimizer.step(loss=steps[1][0])  # another set of gradients: another plan
        if disturbed:
            with torch.cuda.stream(side):  # and whoever asks that stream for memory fills it
                filled = [
                    torch.full((n,), -1, dtype=torch.int64, device="cuda") for n in (2, 16, 64) * 50
                ]
            assert filled
        torch.cuda.synchronize()
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)
