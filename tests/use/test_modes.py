"""train(), eval(), averaged(), iterates(), metrics(), and how a step looks to autograd and schedulers."""

import copy
from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    assert_same_bits,
    device_of,
    make_params,
    run,
    set_gradients,
    snapshot,
    two_groups,
)
from torch import nn

from sfplus_kernels import AdamCScheduleFreePlus, ScheduleFreePlus
from sfplus_kernels.reference import AdamCScheduleFreePlusReference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_alias() -> None:
    assert ScheduleFreePlus is AdamCScheduleFreePlus


@pytest.mark.parametrize("dtype", DTYPES)
def test_eval_holds_x_and_train_holds_y(backend: str, dtype: torch.dtype) -> None:
    params = make_params(dtype=dtype, device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    run(optimizer, params, 8, missing=0.3)
    iterates = [optimizer.iterates(p) for p in params]
    optimizer.eval()
    tolerance = 1e-6 if dtype != torch.float64 else 1e-14
    for p, old in zip(params, iterates, strict=True):
        torch.testing.assert_close(
            p.detach(), old.x.to(dtype), rtol=max(tolerance, torch.finfo(dtype).eps), atol=tolerance
        )
        for now, then in zip(optimizer.iterates(p), old, strict=True):
            torch.testing.assert_close(now, then, rtol=tolerance, atol=tolerance)
    assert any(not torch.equal(old.x, old.y) for old in iterates)
    optimizer.train()
    for p, old in zip(params, iterates, strict=True):
        torch.testing.assert_close(
            p.detach(), old.y.to(dtype), rtol=max(tolerance, torch.finfo(dtype).eps), atol=tolerance
        )
        if dtype in (torch.bfloat16, torch.float16):  # the master is exact
            assert_same_bits(optimizer.iterates(p).y, old.y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_averaged_puts_y_back_exactly(backend: str, dtype: torch.dtype) -> None:
    params = make_params(dtype=dtype, device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    run(optimizer, params, 6, missing=0.3)
    before = snapshot(optimizer, params)
    x = [optimizer.iterates(p).x.to(dtype) for p in params]
    with optimizer.averaged():
        assert not optimizer.param_groups[0]["train_mode"]
        for p, value in zip(params, x, strict=True):
            torch.testing.assert_close(
                p.detach(), value, rtol=torch.finfo(dtype).eps * 2, atol=1e-6
            )
        assert any(
            not torch.equal(p.detach(), y) for p, y in zip(params, before["params"], strict=True)
        )
        with optimizer.averaged():  # nested: already x
            pass
    assert_same_bits(snapshot(optimizer, params), before)
    with pytest.raises(KeyError, match="inside"), optimizer.averaged():
        raise KeyError("inside")
    assert_same_bits(snapshot(optimizer, params), before)


def test_modes_create_no_state_and_cost_nothing_when_unchanged(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
    optimizer.train()
    optimizer.eval()
    optimizer.train()
    assert dict(optimizer.state) == {}
    run(optimizer, params, 2)
    monkeypatch.setattr(AdamCScheduleFreePlus, "_containers", None)
    optimizer.train()


def test_iterates_before_the_first_step_are_copies(backend: str) -> None:
    for dtype in DTYPES:
        p = make_params([(3, 2)], dtype, device_of(backend))[0]
        optimizer = AdamCScheduleFreePlus([p], backend=backend)
        x, y, z = optimizer.iterates(p)
        assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for value in (x, y, z):
            assert torch.equal(value.to(dtype), p.detach())
            value.zero_()
        assert bool(p.detach().abs().sum() > 0)


def test_backward_through_a_tensor_saved_before_the_step(backend: str) -> None:
    """The kernels write through addresses; autograd must notice, not return a wrong gradient."""
    device = device_of(backend)
    p = nn.Parameter(torch.ones(3, device=device))
    q = nn.Parameter(torch.ones(3, device=device))
    optimizer = AdamCScheduleFreePlus([p], backend=backend)
    optimizer.train()
    for write in ("step", "eval", "train"):
        stale = (p * q).sum()  # saves p for the gradient of q
        if write == "step":
            p.grad = torch.ones_like(p)
            optimizer.step(loss=1.0)
        else:
            getattr(optimizer, write)()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.backward()


@pytest.mark.filterwarnings(r"ignore:sfplus_kernels \[scheduler\]")
def test_step_func_hooks_and_schedulers(backend: str) -> None:
    params = make_params([(4,)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, lr=0.5, backend=backend)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 1))
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.train()
    for k in range(3):
        set_gradients(params, [torch.ones(4)])
        assert optimizer.step_func(2.0) == 2.0
        figures = optimizer.metrics()
        assert isinstance(figures["polyak_lr"], float)
        assert figures["scheduled_lr"] == [pytest.approx(0.5 / (k + 1) * figures["polyak_lr"])]
        scheduler.step()
    assert calls == ["before", "after"] * 3


def test_closure_returns_its_loss(backend: str) -> None:
    p = make_params([(4,)], device=device_of(backend))[0]
    optimizer = AdamCScheduleFreePlus([p], backend=backend)
    optimizer.train()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert isinstance(loss, torch.Tensor)
    assert optimizer.metrics()["function_value"] == loss.item()


@pytest.mark.parametrize(
    "loss", [2.0, 2, torch.tensor(2.0), torch.tensor(2), torch.tensor(2.0).bfloat16()]
)
def test_kinds_of_loss(backend: str, loss: Any) -> None:
    params = make_params([(4,)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
    optimizer.train()
    set_gradients(params, [torch.ones(4)])
    assert optimizer.step(loss=loss) is loss
    assert optimizer.metrics()["function_value"] == 2.0


@pytest.mark.filterwarnings(r"ignore:sfplus_kernels \[scheduler\]")
def test_lr_in_a_tensor(backend: str) -> None:
    def result(lr: Any) -> list[torch.Tensor]:
        params = make_params(device=device_of(backend))
        optimizer = AdamCScheduleFreePlus(params, lr=lr, backend=backend)
        run(optimizer, params, 2)
        if isinstance(lr, torch.Tensor):
            lr.fill_(0.25)
        else:
            optimizer.param_groups[0]["lr"] = 0.25
        run(optimizer, params, 2)
        return params  # type: ignore[return-value]

    number, tensor = result(0.5), result(torch.tensor(0.5, dtype=torch.float64))
    on_device = result(torch.tensor(0.5, dtype=torch.float64, device=device_of(backend)))
    for a, b, c in zip(number, tensor, on_device, strict=True):
        assert_same_bits(a.detach(), b.detach())
        assert_same_bits(a.detach(), c.detach())


def test_step_without_a_loss_while_every_lr_is_zero_allocates_state(backend: str) -> None:
    params = make_params(dtype=torch.bfloat16, device=device_of(backend))
    before = [p.detach().clone() for p in params]
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()  # in eval mode, as checkpoint loaders find it
    assert all(len(optimizer.state[p]) == 5 for p in params)
    assert optimizer.state_dict()["param_groups"][0]["k"] == 0
    for p, old in zip(params, before, strict=True):
        assert torch.equal(p.detach(), old)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.train()
    with pytest.raises(ValueError, match="got no loss"):
        optimizer.step()


def test_add_param_group_in_the_middle(backend: str) -> None:
    shapes = [(7,), (3, 4)]
    kwargs = {"lr": 0.4, "weight_decay": 1.0, "polyak_beta": 0.5, "sf_beta1_anneal_steps": 8}
    params, truth = make_params(shapes, device=device_of(backend)), make_params(shapes)
    optimizer = AdamCScheduleFreePlus(params[:1], backend=backend, **kwargs)  # type: ignore[arg-type]
    reference = AdamCScheduleFreePlusReference(truth[:1], **kwargs)  # type: ignore[arg-type]
    for o, ps in ((optimizer, params), (reference, truth)):
        run(o, ps[:1], 5)
        o.add_param_group({"params": ps[1:], "lr": 0.2})
        run(o, ps, 5)
    assert optimizer.param_groups[1]["train_mode"]
    state = optimizer.state_dict()["param_groups"]
    assert [group["k"] for group in state] == [10, 5]
    for p, t in zip(params, truth, strict=True):
        torch.testing.assert_close(p.detach().cpu(), t.detach(), rtol=1e-11, atol=1e-13)


def test_metrics_and_state_have_the_documented_names(backend: str) -> None:
    params = make_params(device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    run(optimizer, params, 3)
    figures = optimizer.metrics()
    per_group = {"scheduled_lr", "ckp1", "lr_max", "weight_sum", "capped"}
    assert set(figures) == per_group | {
        "k",
        "function_value",
        "grad_l1",
        "grad_norm",
        "ip_term",
        "grad_l1_ema",
        "polyak_lr",
        "sf_beta1",
        "skipped_steps",
        "consecutive_skipped_steps",
        "no_gradients",
    }
    for name, value in figures.items():
        assert isinstance(value, list if name in per_group else float), name
    norm = torch.cat([p.grad.flatten() for p in params if p.grad is not None]).norm()
    assert figures["grad_norm"] == pytest.approx(norm.item(), rel=1e-12)
    state = optimizer.state[params[1]]
    assert set(state) == {"exp_avg", "exp_avg_sq", "displacement", "step"}
    assert state["step"].shape == ()


def test_state_bytes(backend: str) -> None:
    """12 bytes per float32 parameter, 16 with a master for bfloat16."""
    for dtype, expected in ((torch.float32, 12), (torch.bfloat16, 16), (torch.float64, 24)):
        p = make_params([(1000,)], dtype, device_of(backend))[0]
        optimizer = AdamCScheduleFreePlus([p], backend=backend)
        run(optimizer, [p], 1)
        buffers = [v for v in optimizer.state[p].values() if v.dim() > 0]
        assert sum(v.numel() * v.element_size() for v in buffers) == expected * 1000


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch 2.10 to 2.12 say so
def test_a_step_allocates_nothing_that_grows_with_the_model() -> None:
    """eager does, so the measurement sees what it is to see."""
    allocated = {}
    on_cpu = [n for n in ("cpu", "triton", "eager") if device_of(n).type == "cpu"]
    for name in on_cpu:
        params = make_params([(500, 100), (3,)], torch.float32)
        optimizer = AdamCScheduleFreePlus(params, backend=name)
        run(optimizer, params, 2)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            optimizer.step(loss=1.0)
        allocated[name] = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated["eager"] > 4 * 50_000
    assert all(allocated[name] < 1000 for name in on_cpu if name != "eager")


def test_parameters_replaced_and_moved_in_memory(backend: str) -> None:
    """Wrappers swap .data and even the Parameter objects after construction."""
    device = device_of(backend)
    params, twins = make_params(device=device), make_params(device=device)
    optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING)
    twin = AdamCScheduleFreePlus(twins, backend=backend, **EVERYTHING)
    run(optimizer, params, 3)
    run(twin, twins, 6)
    for p in params:
        p.data = p.data.clone()  # another address
        for name, value in optimizer.state[p].items():
            optimizer.state[p][name] = value.clone()  # as a loop of .to(device) does
    run(optimizer, params, 6, skip=3)
    assert_same_bits(snapshot(optimizer, params), snapshot(twin, twins))

    replaced = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer.param_groups[0]["params"] = replaced
    optimizer.state.clear()
    run(optimizer, replaced, 1)
    assert set(optimizer.state) == set(replaced)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_continue_alike(backend: str, way: str) -> None:
    import pickle

    params = make_params(device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING)
    run(optimizer, params, 5, missing=0.3)
    pair = (optimizer, params)
    twin, twins = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    for p, q in zip(params, twins, strict=True):
        assert p is not q
    run(optimizer, params, 9, missing=0.3, skip=5)
    run(twin, twins, 9, missing=0.3, skip=5)
    assert_same_bits(snapshot(optimizer, params), snapshot(twin, twins))
    twin.metrics()
    assert twin._runtime.engine.backend_name == backend
