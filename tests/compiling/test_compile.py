"""torch.compile around a training step: the same numbers, no compilation after the second call, silence."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import traced_runs
from support import device_of, make_params, set_gradients
from torch import Tensor, nn
from traced_runs import SHAPES, Compiler, Make, each_gradient, train_both, training_step

from sfplus_kernels import (
    SGD,
    AdamCScheduleFreePlus,
    AdamW,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    RAdamScheduleFree,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    report_loss,
)

# Dynamo reads attributes that warn, and filters these warnings: as errors they would stop it.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("silence")]


# -- the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "make"),
    [
        ("eager", AdamCScheduleFreePlus),
        ("eager", AdamWScheduleFree),
        ("aot_eager", AdamCScheduleFreePlus),
        ("aot_eager", SGDScheduleFree),
        ("aot_eager", RAdamScheduleFree),
        ("aot_eager", AdamW),
    ],
)
def test_compiled_training_step(backend: str, make: Make) -> None:
    """One operator, in a graph of its own, and a learning rate that is another one at each step."""

    def follow(k: int, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (1 + k)

    compiler = Compiler(backend)
    train_both(compiler, make, between=follow)
    (node,) = compiler.operators
    params, gradients, state, *_ = node.args
    assert len(params) == len(gradients) == 4
    buffers = {AdamCScheduleFreePlus: 3, SGDScheduleFree: 1}.get(make, 2)
    assert len(state) == 4 * buffers
    in_its_graph = [n for n in node.graph.nodes if n.op not in ("placeholder", "output")]
    assert in_its_graph == [node]


@pytest.mark.parametrize("state_format", ["16bit", "8bit"])
def test_state_in_few_bits(state_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its random numbers are of the step, compiled or not."""
    compiler = Compiler("aot_eager")
    if state_format == "8bit":  # a matrix that is large enough for it
        wide = [nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)]
        monkeypatch.setattr(traced_runs, "make_model", lambda: copy.deepcopy(nn.Sequential(*wide)))
    train_both(compiler, functools.partial(AdamCScheduleFreePlus, state_format=state_format))
    (node,) = compiler.operators
    assert len(node.args[2]) == (4 * 3 if state_format == "16bit" else 5 * 3 + 4)


def test_a_momentum_that_is_taken_away_and_given_back(copying: Compiler) -> None:
    """The graph of a momentum, and that of none; the buffers rest meanwhile."""

    def change(params: list, k: int, optimizer: Any) -> None:
        optimizer.param_groups[0]["momentum"] = 0.0 if k in (2, 3) else 0.9 - 0.1 * k

    make = functools.partial(SGD, lr=0.1, momentum=0.9, dampening=0.5)
    optimizer, _ = each_gradient(copying, make, change=change)
    assert all("momentum_buffer" in state for state in optimizer.state.values())
    assert 1 <= len(copying.operators) <= 3


@pytest.mark.parametrize("make", [AdamCScheduleFreePlus, AdamWScheduleFree])
def test_lr_is_a_tensor_and_a_scheduler_runs(compiler: Compiler, make: Make) -> None:
    def make_step(model: nn.Module, optimizer: Any) -> Callable[[Tensor, Tensor], Tensor]:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k))
        train = training_step(model, optimizer)

        def train_and_schedule(x: Tensor, y: Tensor) -> Tensor:
            loss = train(x, y)
            scheduler.step()
            return loss

        return train_and_schedule

    train_both(compiler, lambda params: make(params, lr=torch.tensor(0.05)), make_step)
    assert len(compiler.operators) == 1


def test_everything_a_loop_calls(compiler: Compiler) -> None:
    """Modes, reported losses, a gradient scaler, figures: they break the graph, and that is all."""

    def make_step(model: nn.Module, optimizer: Any) -> Callable[[Tensor, Tensor], Any]:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

        def train(x: Tensor, y: Tensor) -> Any:
            optimizer.train()
            loss = (model(x) - y).square().mean()
            report_loss(optimizer, loss)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            optimizer.eval()
            loss_at_x = (model(x) - y).square().mean().detach()
            return loss_at_x, optimizer.metrics()["k"]

        return train

    train_both(compiler, AdamCScheduleFreePlus, make_step)
    assert len(compiler.operators) == 1


def test_loss_is_a_float(copying: Compiler) -> None:
    """Another one at each step, and not compiled in."""
    params = make_params(SHAPES)
    optimizer = AdamCScheduleFreePlus(params)
    optimizer.train()
    step = copying.compile(lambda loss: optimizer.step(loss=loss))
    for k, loss in enumerate([1.0, 2.5, 0.25, 4.0, float("inf")]):
        set_gradients(params, [torch.ones(p.shape) for p in params])
        with torch._dynamo.config.patch(error_on_recompile=k >= 2):
            assert step(loss) == loss
        assert optimizer.metrics()["function_value"] == loss
    assert optimizer.metrics()["skipped_steps"] == 1
    assert len(copying.operators) == 1


def test_closures_are_called_outside_of_the_graph(compiler: Compiler) -> None:
    def make_step(model: nn.Module, optimizer: Any) -> Callable[[Tensor, Tensor], Any]:
        def train(x: Tensor, y: Tensor) -> Any:
            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (model(x) - y).square().mean()
                loss.backward()
                return loss

            return optimizer.step(closure)

        return train

    train_both(compiler, AdamCScheduleFreePlus, make_step)
    train_both(compiler, AdamWScheduleFreeClosure, make_step)  # which moves parameters after it
    assert len(compiler.operators) == len(compiler.graphs) == 1


def test_wrapper(compiler: Compiler) -> None:
    train_both(compiler, lambda params: ScheduleFreeWrapper(torch.optim.RMSprop(params, lr=0.01)))
    assert not compiler.operators


def test_backends(backend: str, copying: Compiler) -> None:
    """On copies: all dtypes of parameters, a gradient of another layout, an empty tensor."""
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float32, torch.float16]

    def of_each_dtype() -> list:
        one_dtype = make_params(SHAPES, device=device_of(backend))
        pairs = zip(one_dtype, dtypes, strict=True)
        return [nn.Parameter(p.detach().to(dtype)) for p, dtype in pairs]

    def transpose(params: list, k: int, optimizer: Any) -> None:
        params[1].grad = params[1].grad.t().contiguous().t()

    _, calls = each_gradient(
        copying,
        lambda params: AdamCScheduleFreePlus(params, lr=0.1, backend=backend),
        change=transpose,
        parameters=of_each_dtype,
        steps=3,
    )
    assert calls == [1, 1, 1]


def test_default_compiler_steps_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor gives the operator the optimizer's own tensors: no plan is made for copies."""
    compiler = Compiler("inductor")
    optimizer, calls = each_gradient(compiler, AdamCScheduleFreePlus, steps=2)
    assert calls == [1, 1]
    monkeypatch.setattr(optimizer._runtime.engine, "plan", None)
    params = optimizer.param_groups[0]["params"]
    set_gradients(params, [torch.ones(p.shape) for p in params])
    before = [p.detach().clone() for p in params]
    compiler.compile(optimizer.step)(loss=torch.tensor(1.0))
    assert optimizer.metrics()["k"] == 3
    assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True) if a.numel())
