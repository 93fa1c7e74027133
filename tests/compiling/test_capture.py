"""What a step does while a CUDA graph is being captured, without a GPU: the capture is only claimed.

Copies that a graph would record are made at once here. What stays out of sight is the replay: see
test_gpu_graphs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import make_params, set_gradients, stream
from torch import Tensor

from sfplus_kernels import SGD, AdamCScheduleFreePlus, AdamWScheduleFree, SFPlusWarning
from sfplus_kernels.backends import gradient_addresses
from sfplus_kernels.contract import capture
from sfplus_kernels.contract.capture import STEPS, HostStock
from sfplus_kernels.contract.layout import Global
from sfplus_kernels.engine import delayed_figures, engine, runtime

SHAPES = [(3,), (0,), (5, 2)]
Claim = Callable[[bool], None]


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Claim:
    """``claim(True)``: from now on a graph is being captured."""
    state = {"capturing": False}
    for module in (capture, gradient_addresses, engine, runtime, delayed_figures):
        monkeypatch.setattr(module, "capturing", lambda device: state["capturing"])
    original = HostStock.__init__

    def with_stock(self: HostStock, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.refill()  # without a GPU nobody else does

    monkeypatch.setattr(HostStock, "__init__", with_stock)
    return lambda on: state.update(capturing=on)


def start(cls: Any = AdamCScheduleFreePlus, **arguments: Any) -> tuple[Any, list[Tensor]]:
    params = make_params(SHAPES, torch.float32)
    optimizer = cls(params, **arguments)
    optimizer.train()
    return optimizer, params


def fresh_gradients(params: list[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
    """New tensors at new addresses; whoever keeps them keeps their addresses from being used again."""
    ((loss, gradients),) = stream([p.shape for p in params], 1, seed=seed)
    set_gradients(params, gradients)
    return torch.tensor(loss), [p.grad for p in params if p.grad is not None]


def on_device(loss: Tensor) -> Any:
    """A loss that says it is not on the host."""

    class OnDevice(Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda")

    return loss.as_subclass(OnDevice)


def table_of(optimizer: Any) -> Any:
    return optimizer._runtime.kept.plan.table


def addresses(gradients: list[Tensor]) -> list[int]:
    """Those of empty tensors, which are 0, stand last in the table."""
    return sorted((g.data_ptr() for g in gradients), key=lambda address: address == 0)


def test_a_recorded_step_owns_its_table_of_gradients(claim: Claim) -> None:
    """Also where the gradients are where they were; and the next step does not use the recorded one."""
    optimizer, params = start(AdamWScheduleFree)
    _, first = fresh_gradients(params, 1)
    optimizer.step()
    own = table_of(optimizer).gradients
    claim(True)
    optimizer.step()
    recorded = table_of(optimizer).gradients
    assert recorded is not own
    assert recorded.tolist() == addresses(first)
    claim(False)
    optimizer.step()  # the gradients have not moved, but only a replay fills the recorded table
    assert table_of(optimizer).gradients is own
    _, second = fresh_gradients(params, 2)
    optimizer.step()
    assert own.tolist() == addresses(second) != addresses(first)
    assert recorded.tolist() == addresses(first)


def test_two_recorded_steps_have_two_tables(claim: Claim) -> None:
    optimizer, params = start(AdamWScheduleFree)
    kept = [fresh_gradients(params, 1)]
    optimizer.step()
    claim(True)
    recorded = []
    for seed in (2, 3):
        kept.append(fresh_gradients(params, seed))
        optimizer.step()
        recorded.append(table_of(optimizer).gradients)
    assert [t.tolist() for t in recorded] == [addresses(g) for _, g in kept[1:]]


def test_a_graphs_memory_outlives_the_plan(claim: Claim) -> None:
    """Another set of gradients makes another plan: the engine keeps the one that the graph reads."""
    optimizer, params = start(AdamWScheduleFree)
    fresh_gradients(params, 1)
    optimizer.step()
    claim(True)
    optimizer.step()
    claim(False)
    plan = optimizer._runtime.kept.plan
    params[0].grad = None
    optimizer.step()
    assert optimizer._runtime.kept.plan is not plan
    assert any(kept is plan for kept in optimizer._runtime.engine._recorded)


def test_state_cannot_be_made_inside_a_graph(claim: Claim) -> None:
    optimizer, params = start(AdamWScheduleFree)
    fresh_gradients(params, 1)
    claim(True)
    with pytest.raises(RuntimeError, match=r"being captured.*run one step.*before the capture"):
        optimizer.step()
    assert not optimizer.state
    assert optimizer._runtime is None
    claim(False)
    optimizer.step()
    claim(True)
    with pytest.raises(RuntimeError, match=r"being captured.*eval\(\)"):
        optimizer.eval()
    assert optimizer.param_groups[0]["train_mode"]


@pytest.mark.parametrize("loss", [1.5, torch.tensor(1.5)])
def test_a_loss_on_the_host_cannot_be_recorded(claim: Claim, loss: Any) -> None:
    optimizer, params = start()
    fresh_gradients(params, 1)
    optimizer.step(loss=2.0)
    before = [p.detach().clone() for p in params]
    claim(True)
    with pytest.raises(RuntimeError, match=r"the loss is on the host.*0-dim tensor on cpu"):
        optimizer.step(loss=loss)
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    optimizer.step(loss=on_device(torch.tensor(1.5)))


def test_momentum_cannot_begin_inside_a_graph(claim: Claim) -> None:
    """A resting one neither: that is another plan."""
    optimizer, params = start(SGD, momentum=0.0)
    fresh = fresh_gradients(params, 1)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    claim(True)
    with pytest.raises(RuntimeError, match="CUDA graph"):
        optimizer.step()
    claim(False)
    optimizer.step()
    claim(True)
    optimizer.step()
    assert table_of(optimizer).gradients.tolist() == addresses(fresh[1])


def test_hyperparameters_are_frozen_in_a_graph(claim: Claim) -> None:
    """Recorded from memory of their own, and sent by every step after: a replay has sent the old ones."""
    optimizer, params = start(AdamWScheduleFree, lr=0.05)
    fresh_gradients(params, 1)
    optimizer.step()
    claim(True)
    optimizer.step()
    engine = optimizer._runtime.engine
    assert len(engine._host_hyper._given_out) == len(engine._host_settings._given_out) == 1
    claim(False)
    for lr in (0.25, 0.25):
        optimizer.param_groups[0]["lr"] = lr
        engine.run.hyper.zero_()  # as a replay might
        optimizer.step()
        assert float(engine.run.hyper[0, 0]) == lr
    assert float(engine._host_hyper._given_out[0][0, 0]) == 0.05


@pytest.mark.parametrize("how", ["load_state_dict", "add_param_group"])
def test_a_graph_whose_optimizer_became_another_is_told_of(claim: Claim, how: str) -> None:
    optimizer, params = start(AdamWScheduleFree)
    fresh_gradients(params, 1)
    optimizer.step()
    claim(True)
    optimizer.step()
    claim(False)
    optimizer.step()  # beside a graph all is well
    state = optimizer.state_dict()

    def become_another() -> None:
        if how == "load_state_dict":
            optimizer.load_state_dict(state)
        else:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
            optimizer.step()

    with pytest.warns(SFPlusWarning, match=r"\[graph\].*captured into a CUDA graph"):
        become_another()


def test_a_grad_scaler_can_be_recorded(claim: Claim) -> None:
    """It hands its scale and whether a gradient is infinite over as tensors on the device."""
    optimizer, params = start(AdamWScheduleFree)
    fresh_gradients(params, 1)
    optimizer.step()
    claim(True)
    optimizer.grad_scale, optimizer.found_inf = (on_device(torch.tensor(x)) for x in (8.0, 0.0))
    optimizer.step()
    figures = optimizer._runtime.engine.run.globals
    assert float(figures[Global.GRAD_SCALE]) == 8
    optimizer.found_inf = torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="found_inf is on the host, and a CUDA graph"):
        optimizer.step()


def test_the_stock_of_memory_for_recorded_steps(claim: Claim) -> None:
    optimizer, params = start(AdamWScheduleFree)
    fresh_gradients(params, 1)
    optimizer.step()
    claim(True)
    for _ in range(STEPS):
        optimizer.step()
    with pytest.raises(RuntimeError, match=f"{STEPS} steps were recorded.*run one optimizer step"):
        optimizer.step()


def test_refilling_leaves_what_was_given_alone() -> None:
    stock = HostStock((2,), torch.int64, pin=False)
    stock.refill()
    given = [stock.give(torch.tensor([i, i])) for i in range(STEPS)]
    stock.refill()
    more = [stock.give(torch.tensor([-1, -1])) for _ in range(STEPS)]
    assert [g.tolist() for g in given] == [[i, i] for i in range(STEPS)]
    assert len({t.data_ptr() for t in given + more}) == 2 * STEPS


def test_no_capture_on_the_cpu() -> None:
    assert not capture.capturing(torch.device("cpu"))
