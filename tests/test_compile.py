"""torch.compile around a training step: the same numbers, no compilation after the second call, silence."""

import copy
import gc
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support import assert_same_bits, device_of, make_params, set_gradients, stream
from torch import Tensor, nn

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    RAdamScheduleFree,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    SharedStep,
    report_loss,
)
from sfplus_kernels.optim import operators

# Dynamo reads attributes that warn, and filters these warnings: as errors they would stop it.
pytestmark = pytest.mark.filterwarnings("default")

STEPS = 6
OPERATOR = torch.ops.sfplus_kernels.step.default
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
        targets = (torch.ops.sfplus_kernels.step, OPERATOR)
        return [n for graph in self.graphs for n in graph.graph.nodes if n.target in targets]


@pytest.fixture(autouse=True)
def silence(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Nothing was compiled before the test; in it no warning, and nothing logged."""
    torch._dynamo.reset()
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch")]
    for name in names:  # some do not propagate
        logging.getLogger(name).addHandler(handler)
    yield
    for name in names:
        logging.getLogger(name).removeHandler(handler)
    torch._dynamo.reset()
    # of which torch has some of its own, and which Python does not show
    said += [str(w.message) for w in recwarn if w.category is not DeprecationWarning]
    assert said == []


@pytest.fixture
def compiler() -> Compiler:
    """Which runs graphs as they were traced: the operator gets the optimizer's tensors."""
    return Compiler("eager")


@pytest.fixture
def copying() -> Compiler:
    """Which gives the operator copies of what it writes, and writes them back."""
    return Compiler("aot_eager")


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


# -- the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "make"),
    [
        ("eager", AdamCScheduleFreePlus),
        ("eager", AdamWScheduleFree),
        ("aot_eager", AdamCScheduleFreePlus),
        ("aot_eager", SGDScheduleFree),
        ("aot_eager", RAdamScheduleFree),
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
    monkeypatch.setattr(optimizer._engine, "plan", None)
    params = optimizer.param_groups[0]["params"]
    set_gradients(params, [torch.ones(p.shape) for p in params])
    before = [p.detach().clone() for p in params]
    compiler.compile(optimizer.step)(loss=torch.tensor(1.0))
    assert optimizer.metrics()["k"] == 3
    assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True) if a.numel())


# -- what changes between steps ---------------------------------------------------------------------


def test_checkpoint_in_the_middle(copying: Compiler) -> None:
    def reload(params: list, k: int, optimizer: Any) -> None:
        if k == 3:
            state = copy.deepcopy(optimizer.state_dict())
            assert state["param_groups"][0]["k"] == 3
            for p in params:  # which load_state_dict replaces
                optimizer.state[p]["exp_avg_sq"].fill_(float("nan"))
            optimizer.load_state_dict(state)

    _, calls = each_gradient(copying, AdamWScheduleFree, change=reload)
    assert calls == [1] * STEPS


def test_new_group_is_one_new_graph(compiler: Compiler) -> None:
    def grow(params: list, k: int, optimizer: Any) -> None:
        if k == 3:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))], "lr": 0.2})
        for group in optimizer.param_groups[1:]:
            group["params"][0].grad = torch.full((5,), 1.0 + k)

    _, calls = each_gradient(compiler, AdamCScheduleFreePlus, change=grow)
    assert calls == [1, 1, 1, 2, 2, 2]


def test_another_set_of_gradients_each_time(compiler: Compiler) -> None:
    """A few sets are compiled; the steps of further ones stay outside of the graph."""

    def drop(params: list, k: int, optimizer: Any) -> None:
        for bit, param in enumerate(params):
            if k >> bit & 1:
                param.grad = None

    _, calls = each_gradient(compiler, AdamCScheduleFreePlus, change=drop, steps=12)
    assert calls[-1] == operators.MAX_KINDS


def test_step_without_any_gradient(copying: Compiler) -> None:
    def drop(params: list, k: int, optimizer: Any) -> None:
        if k == 2:
            optimizer.zero_grad()

    optimizer, calls = each_gradient(copying, AdamCScheduleFreePlus, change=drop)
    assert optimizer.metrics()["k"] == STEPS - 1
    assert calls == [1] * STEPS


def test_many_tensors_stay_outside_of_the_graph(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that share their memory, about which an old torch is wrong."""

    def views_of_one_tensor() -> list:
        flat = torch.linspace(0, 1, 40)
        return [nn.Parameter(flat[:15]), nn.Parameter(flat[15:])]

    each_gradient(compiler, AdamCScheduleFreePlus, parameters=views_of_one_tensor)
    monkeypatch.setattr(operators, "MAX_TENSORS", 4 * 4 - 1)  # the empty tensor does not count
    each_gradient(compiler, AdamCScheduleFreePlus)
    assert not compiler.graphs
    monkeypatch.setattr(operators, "MAX_TENSORS", 4 * 4)
    each_gradient(compiler, AdamCScheduleFreePlus)
    assert len(compiler.operators) == 1


def test_hooks_and_subclasses_find_the_step_done(compiler: Compiler) -> None:
    """A hook after the step, and what a subclass does after it, read what the passes wrote."""
    seen: list[Tensor] = []

    def look(optimizer: Any, *_: Any) -> None:
        seen.append(optimizer.param_groups[0]["params"][0].detach().clone())

    class Looking(AdamWScheduleFree):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            look(self)
            return result

    def hooked(params: Any) -> AdamWScheduleFree:
        optimizer = AdamWScheduleFree(params)
        optimizer.register_step_post_hook(look)
        return optimizer

    for make in (hooked, Looking):
        seen.clear()
        each_gradient(compiler, make)
        assert_same_bits(seen[STEPS:], seen[:STEPS])
        assert not torch.equal(seen[-1], seen[-2])


def test_two_optimizers_in_one_step(copying: Compiler) -> None:
    models, optimizers = [make_model(), make_model()], []
    for model, make in zip(models, (AdamCScheduleFreePlus, SGDScheduleFree), strict=True):
        optimizers.append(make(model.parameters(), lr=0.1))
        optimizers[-1].train()
    both = [training_step(m, o) for m, o in zip(models, optimizers, strict=True)]
    step = copying.compile(lambda x, y: [train(x, y) for train in both])
    for x, y in batches(3):
        step(x, y)
    assert len(copying.operators) == 2
    expected = make_model()
    alone = SGDScheduleFree(expected.parameters(), lr=0.1)
    alone.train()
    for x, y in batches(3):
        training_step(expected, alone)(x, y)
    assert_same_bits(list(models[1].parameters()), list(expected.parameters()))


def test_optimizers_that_share_a_step(copying: Compiler) -> None:
    """Each takes the sums over the gradients of both, so their passes stay outside of the graph."""
    results = []
    for compiled in (False, True):
        model, shared = make_model(), SharedStep()
        optimizers = [
            AdamCScheduleFreePlus(layer.parameters(), lr=0.1, shared_step=shared)
            for layer in (model[0], model[2])
        ]
        for optimizer in optimizers:
            optimizer.train()

        def train(x: Tensor, y: Tensor, model: Any = model, optimizers: Any = optimizers) -> None:
            loss = (model(x) - y).square().mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step(loss=loss)
                optimizer.zero_grad()

        step = copying.compile(train) if compiled else train
        for x, y in batches(3):
            step(x, y)
        results.append([p.detach() for p in model.parameters()])
    assert copying.operators == []
    assert_same_bits(*results)


def test_figures_without_waiting_are_those_of_the_step_that_is_done(compiler: Compiler) -> None:
    model = make_model()
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1)
    optimizer.train()
    step = compiler.compile(training_step(model, optimizer))
    optimizer.metrics(wait=False)
    for k, (x, y) in enumerate(batches(4), start=1):
        step(x, y)
        assert optimizer.metrics(wait=False) == optimizer.metrics()
        assert optimizer.metrics()["k"] == k


# -- errors, memory ---------------------------------------------------------------------------------


def test_errors_are_those_of_eager_mode(compiler: Compiler) -> None:
    params = make_params(SHAPES)
    optimizer = AdamCScheduleFreePlus(params)
    step = compiler.compile(lambda loss: optimizer.step(loss=loss))
    set_gradients(params, [torch.ones(p.shape) for p in params])
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="in eval mode"):
        step(torch.tensor(1.0))
    optimizer.train()
    with pytest.raises(ValueError, match="expected a scalar"):
        step(torch.ones(2))
    assert_same_bits([p.detach() for p in params], before)
    step(torch.tensor(1.0))
    optimizer.step(loss=torch.tensor(1.0))  # eager again: nothing is held back any more
    assert optimizer.metrics()["k"] == 2


def test_copies_are_optimizers_of_their_own(compiler: Compiler) -> None:
    """And nothing of one is kept once it is gone."""
    model = make_model()
    optimizer = AdamCScheduleFreePlus(model.parameters())
    optimizer.train()
    step = compiler.compile(lambda optimizer, loss: optimizer.step(loss=loss))

    def take(model: nn.Module, optimizer: Any) -> None:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        step(optimizer, torch.tensor(1.0))

    take(model, optimizer)
    twin, of_twin = copy.deepcopy((model, optimizer))
    take(twin, of_twin)
    assert (optimizer.metrics()["k"], of_twin.metrics()["k"]) == (1, 2)
    take(model, optimizer)
    assert_same_bits(list(model.parameters()), list(twin.parameters()))

    first = next(twin.parameters())
    gone = [weakref.ref(thing) for thing in (of_twin, first, of_twin.state[first]["exp_avg"])]
    del twin, of_twin, first
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]


# -- the operator -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "dtype"), [(AdamCScheduleFreePlus, torch.bfloat16), (SGDScheduleFree, torch.float32)]
)
def test_operator_declares_what_it_writes(make: Make, dtype: torch.dtype) -> None:
    """torch's own check of schema, fake implementation and use by its compilers."""
    params = make_params([(7,), (4, 5)], dtype)
    optimizer = make(params)
    optimizer.train()
    for _ in range(2):
        set_gradients(params, [torch.ones(p.shape) for p in params])
        take_step(optimizer, 1.0)
    step = AdamCScheduleFreePlus.step if make is AdamCScheduleFreePlus else SGDScheduleFree.step
    keywords = {"loss": 1.0} if make is AdamCScheduleFreePlus else {}
    (call,), _ = operators.begin(step, optimizer, (), keywords)
    checked = torch.library.opcheck(OPERATOR, call)
    assert set(checked.values()) == {"SUCCESS"}, checked


# -- for good ---------------------------------------------------------------------------------------

WHOLE_PROGRAM = """
import torch
from sfplus_kernels import AdamCScheduleFreePlus

model = torch.nn.Linear(8, 1)
optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1)
optimizer.train()

@torch.compile(backend="aot_eager")
def train_step(x, y):
    loss = (model(x) - y).square().mean()
    loss.backward()
    optimizer.step(loss=loss)
    optimizer.zero_grad()
    return loss

for k in range(5):
    if k == 2:
        torch._dynamo.config.error_on_recompile = True
    optimizer.param_groups[0]["lr"] *= 0.9
    train_step(torch.randn(4, 8), torch.randn(4, 1))
print(optimizer.metrics()["k"])
"""


def test_nothing_on_stderr() -> None:
    """In a process of its own, without our filters and handlers; torch refuses to compile again."""
    result = subprocess.run(
        [sys.executable, "-c", WHOLE_PROGRAM], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "5.0\n", "")
