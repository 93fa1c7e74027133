"""A GPU that is behind its host: nobody waits for it, and nothing is overtaken."""

from __future__ import annotations

import pytest
import torch
from gpu_support import COMPILED, Training, no_waiting, on_gpu
from support import (
    EVERYTHING,
    assert_same_bits,
    make_params,
    set_gradients,
    snapshot,
    two_groups,
)

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

pytestmark = pytest.mark.gpu


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
