"""What the tests of torch.compile share: compilers that are watched, and training with and without them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from support import assert_same_bits, make_params, set_gradients, stream
from torch import Tensor, nn

from sfplus_kernels import (
    AdamCScheduleFreePlus,
)
from sfplus_kernels.compiling import operator  # noqa: F401  (torch has the operator from here on)

STEPS = 6
SHAPES = [(7,), (33, 5), (), (0, 3), (257,)]


class Compiler:
    """One of torch's backends, and the graphs that it was given."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs.append(graph)
        return torch._dynamo.lookup_backend(self.backend)(graph, inputs)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend=self)

    @property
    def operators(self) -> list[torch.fx.Node]:
        step = torch.ops.sfplus_kernels.step
        targets = (step, step.default)
        return [n for graph in self.graphs for n in graph.graph.nodes if n.target in targets]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(12, 8, generator=generator), torch.randn(12, 3, generator=generator))
        for _ in range(steps)
    ]


def take_step(optimizer: Any, loss: Any) -> Any:
    if isinstance(optimizer, AdamCScheduleFreePlus):
        return optimizer.step(loss=loss)
    return optimizer.step()


def training_step(model: nn.Module, optimizer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def train(x: Tensor, y: Tensor) -> Tensor:
        loss = (model(x) - y).square().mean()
        loss.backward()
        take_step(optimizer, loss)
        optimizer.zero_grad()
        return loss

    return train


Make = Callable[[Any], Any]


def train_both(
    compiler: Compiler,
    make: Make,
    make_step: Callable[[nn.Module, Any], Callable[[Tensor, Tensor], Any]] = training_step,
    between: Callable[[int, Any], None] = lambda k, optimizer: None,
) -> None:
    """The same training, eager and compiled: all that it leaves agrees to the last bit.

    The third step and those after it compile nothing.
    """
    outcomes = []
    for compiled in (False, True):
        model = make_model()
        optimizer = make(model.parameters())
        optimizer.train()
        step = make_step(model, optimizer)
        if compiled:
            step = compiler.compile(step)
        results = []
        for k, (x, y) in enumerate(batches()):
            between(k, optimizer)
            with torch._dynamo.config.patch(error_on_recompile=k >= 2):
                results.append(step(x, y))
        outcomes.append([results, list(model.parameters()), copy.deepcopy(optimizer.state_dict())])
    assert_same_bits(outcomes[1], outcomes[0])


def each_gradient(
    compiler: Compiler,
    make: Make,
    *,
    change: Callable[[list, int, Any], None] = lambda params, k, optimizer: None,
    parameters: Callable[[], list] = lambda: make_params(SHAPES, torch.float32),
    steps: int = STEPS,
) -> tuple[Any, list[int]]:
    """``optimizer.step`` alone, eager and compiled, with the gradients of a stream: the same bits.

    Args:
        change: called before each step.

    Returns:
        The optimizer that was compiled, and how many calls of the operator were in graphs after each step.
    """
    outcomes = []
    for compiled in (False, True):
        params = parameters()
        optimizer = make(params)
        optimizer.train()
        step = compiler.compile(optimizer.step) if compiled else optimizer.step
        needs_loss, calls = isinstance(optimizer, AdamCScheduleFreePlus), []
        for k, (loss, gradients) in enumerate(stream([p.shape for p in params], steps)):
            set_gradients(params, gradients)
            change(params, k, optimizer)
            step(**{"loss": torch.tensor(loss)} if needs_loss else {})
            calls.append(len(compiler.operators))
        outcomes.append([params, copy.deepcopy(optimizer.state_dict())])
    assert_same_bits(outcomes[1], outcomes[0])
    return optimizer, calls
