"""torch.compile: errors, copies, the operator itself, and a program that says nothing."""

import copy
import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from support import assert_same_bits, make_params, set_gradients
from torch import nn
from traced_runs import SHAPES, Compiler, Make, make_model, take_step

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    SGDScheduleFree,
)
from sfplus_kernels.compiling import operator

# Dynamo reads attributes that warn, and filters these warnings: as errors they would stop it.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("silence")]


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
    (call,), _ = operator.begin(step, optimizer, (), keywords)
    checked = torch.library.opcheck(torch.ops.sfplus_kernels.step.default, call)
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
    optimizer.param_groups[0]["lr"] *= 1.1
    train_step(torch.randn(4, 8), torch.randn(4, 1))
print(optimizer.metrics()["k"])
"""


def test_nothing_on_stderr() -> None:
    """In a process of its own, without our filters and handlers; torch refuses to compile again."""
    result = subprocess.run(
        [sys.executable, "-c", WHOLE_PROGRAM], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "5.0\n", "")
