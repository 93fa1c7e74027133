"""metrics() without waiting, and what the profiler shows of a step."""

from typing import Any

import pytest
import torch
from support import EVERYTHING, device_of, make_params, run, set_gradients, stream

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, ScheduleFreeWrapper
from sfplus_kernels.engine import delayed_figures
from sfplus_kernels.engine.delayed_figures import COPIES, DelayedFigures


def test_figures_without_waiting_are_those_with(backend: str) -> None:
    """On the CPU every step is finished; on a GPU, once one has waited."""
    device = device_of(backend)
    optimizer = AdamCScheduleFreePlus(params := make_params(device=device), backend=backend)
    run(optimizer, params, 2)
    optimizer.metrics(wait=False)
    for loss, gradients in stream([p.shape for p in params], 3, seed=2):
        set_gradients(params, gradients)
        optimizer.step(loss=loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
        late = optimizer.metrics(wait=False)
        assert late == optimizer.metrics()
    assert late["k"] == 5


def test_groups_show_what_was_waited_for_only() -> None:
    optimizer = AdamCScheduleFreePlus(params := make_params([(3,)]), **EVERYTHING)
    run(optimizer, params, 3)
    assert optimizer.metrics(wait=False)["k"] == 3
    assert optimizer.param_groups[0]["k"] == 0
    optimizer.metrics()
    assert optimizer.param_groups[0]["k"] == 3


def test_figures_that_are_asked_for_once_in_many_steps_are_of_the_last() -> None:
    optimizer = AdamWScheduleFree(params := make_params([(3,)]), lr=0.1)
    optimizer.metrics(wait=False)
    for _ in range(3 * COPIES):
        run_one(optimizer, params)
    assert optimizer.metrics(wait=False)["k"] == 3 * COPIES


class SlowEvent:
    """What torch.cuda.Event is to a copy that takes its time."""

    arrived: set[int]
    made: int

    def __init__(self) -> None:
        self.number = type(self).made
        type(self).made += 1

    def record(self, stream: Any) -> None:
        pass

    def query(self) -> bool:
        return self.number in self.arrived


def test_the_newest_that_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies arrive in order, some after steps that found none free."""
    optimizer = AdamWScheduleFree(params := make_params([(3,)]), lr=0.1)
    run_one(optimizer, params)
    engine = optimizer._get_runtime().engine
    SlowEvent.arrived, SlowEvent.made = set(), 0
    monkeypatch.setattr(torch.cuda, "Event", SlowEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    optimizer._runtime._delayed = figures = DelayedFigures(engine)
    optimizer._runtime._each_step = True
    figures._on_gpu = True
    assert optimizer.metrics(wait=False) == {}
    for _ in range(COPIES + 2):  # steps 2 to 7; those after the fourth find no free copy
        run_one(optimizer, params)
    assert SlowEvent.made == COPIES
    assert optimizer.metrics(wait=False) == {}
    SlowEvent.arrived = {0, 1}
    assert optimizer.metrics(wait=False)["k"] == 3
    run_one(optimizer, params)  # step 8, in a copy that is free again
    assert optimizer.metrics(wait=False)["k"] == 3
    SlowEvent.arrived = set(range(COPIES + 1))
    assert optimizer.metrics(wait=False)["k"] == 8
    assert optimizer.metrics()["k"] == 8


def test_no_copy_is_recorded_into_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = AdamWScheduleFree(params := make_params([(3,)]), lr=0.1)
    run_one(optimizer, params)
    assert optimizer.metrics(wait=False)["k"] == 1
    monkeypatch.setattr(delayed_figures, "capturing", lambda device: True)
    assert optimizer._runtime._delayed is not None
    optimizer._runtime._delayed.send()
    assert not optimizer._runtime._delayed._under_way


def run_one(optimizer: Any, params: list) -> None:
    optimizer.train()
    set_gradients(params, [torch.ones(p.shape) for p in params])
    optimizer.step()


def test_the_wrapper_too() -> None:
    base = torch.optim.SGD(params := make_params([(3,)]), lr=0.1)
    optimizer = ScheduleFreeWrapper(base)
    optimizer.train()
    for k in range(1, 4):
        run_one(optimizer, params)
        assert optimizer.metrics(wait=False)["k"] == k


def test_the_profiler_shows_each_pass(backend: str) -> None:
    optimizer = AdamCScheduleFreePlus(
        params := make_params([(5,)], device=device_of(backend)), backend=backend
    )
    run(optimizer, params, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(optimizer, params, 1)
        optimizer.eval()
    names = [event.name for event in profile.events() if event.name.startswith("sfplus_kernels::")]
    passes = ["step"] if backend in ("triton", "cuda") else ["reduce", "finalize", "update"]
    assert names == [f"sfplus_kernels::{name}" for name in [*passes, "interpolate"]]
