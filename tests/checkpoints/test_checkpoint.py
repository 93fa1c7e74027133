"""Saving and resuming: bit for bit, in either mode, across backends, every dtype kept."""

from typing import Any

import pytest
import torch
from support import (
    BACKENDS,
    EVERYTHING,
    assert_same_bits,
    device_of,
    make_params,
    run,
    snapshot,
    through_a_file,
    two_groups,
)
from torch import nn

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.checkpoints import own

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def make(backend: str, dtype: torch.dtype) -> tuple[AdamCScheduleFreePlus, list[nn.Parameter]]:
    params = make_params(dtype=dtype, device=device_of(backend))
    return AdamCScheduleFreePlus(two_groups(params), backend=backend, **EVERYTHING), params


def resume(
    saved: tuple[Any, list[torch.Tensor]], backend: str, dtype: torch.dtype
) -> tuple[AdamCScheduleFreePlus, list[nn.Parameter]]:
    optimizer, params = make(backend, dtype)
    with torch.no_grad():
        for p, value in zip(params, saved[1], strict=True):
            p.copy_(value)
    optimizer.load_state_dict(saved[0])
    return optimizer, params


# Triton's interpreter is slow: there each dtype and each mode, but not every pair
RESUMED = [
    (backend, dtype, mode)
    for backend in BACKENDS
    for dtype in DTYPES
    for mode in ("train", "eval")
    if backend != "triton"
    or dtype == torch.bfloat16
    or (dtype == torch.float64) == (mode == "eval")
]


@pytest.mark.parametrize(("backend", "dtype", "mode"), RESUMED)
def test_resumed_run_is_the_uninterrupted_one(backend: str, dtype: torch.dtype, mode: str) -> None:
    """And two runs give the same bits. Also after a save in eval mode: the run beside it evaluated at
    that step too."""
    runs = [make(backend, dtype) for _ in range(2)]
    for optimizer, params in runs:
        run(optimizer, params, 6, missing=0.3)
        getattr(optimizer, mode)()
    assert_same_bits(*(snapshot(*each) for each in runs))
    optimizer, params = runs[0]
    saved = through_a_file((optimizer.state_dict(), [p.detach() for p in params]))
    run(optimizer, params, 11, missing=0.3, skip=6)

    other, others = resume(saved, backend, dtype)
    assert other.param_groups[0]["train_mode"] == (mode == "train")
    assert_same_bits(through_a_file(other.state_dict()), saved[0])
    run(other, others, 11, missing=0.3, skip=6)
    assert_same_bits(snapshot(other, others), snapshot(optimizer, params))


@pytest.mark.parametrize(
    ("backend", "target"),
    [(a, b) for a in BACKENDS for b in ("eager", "cpu", "triton") if a != b],
)
def test_checkpoints_move_between_backends(backend: str, target: str) -> None:
    if device_of(backend) != device_of(target):
        pytest.skip("the two backends work on different devices here")
    optimizer, params = make(backend, torch.float64)
    run(optimizer, params, 5, missing=0.3)
    saved = through_a_file((optimizer.state_dict(), [p.detach() for p in params]))
    other, others = resume(saved, target, torch.float64)
    run(optimizer, params, 10, missing=0.3, skip=5)
    run(other, others, 10, missing=0.3, skip=5)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-11, atol=1e-13)


def test_loaded_state_is_a_copy_in_the_parameters_layout(backend: str) -> None:
    device = device_of(backend)

    def channels_last() -> tuple[AdamCScheduleFreePlus, list[nn.Parameter]]:
        p = make_params([(2, 3, 4, 5)], torch.float32, device)[0]
        params = [nn.Parameter(p.detach().to(memory_format=torch.channels_last))]
        return AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING), params

    optimizer, params = channels_last()
    run(optimizer, params, 3)
    saved = optimizer.state_dict()
    saved["state"][0] = {k: v.contiguous().clone() for k, v in saved["state"][0].items()}
    other, others = channels_last()
    with torch.no_grad():
        others[0].copy_(params[0])
    other.load_state_dict(saved)
    assert other.state[others[0]]["exp_avg"].stride() == others[0].stride()
    expected = {k: v.clone() for k, v in saved["state"][0].items()}
    run(other, others, 6, skip=3)
    assert_same_bits(saved["state"][0], expected)
    run(optimizer, params, 6, skip=3)
    assert_same_bits(others[0].detach(), params[0].detach())


def test_hooks_see_the_state(backend: str) -> None:
    optimizer, params = make(backend, torch.float32)
    run(optimizer, params, 2)
    saved = optimizer.state_dict()
    other, others = make(backend, torch.float32)
    seen = []

    def rename(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "k": 5} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    other.register_load_state_dict_pre_hook(rename)
    other.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    other.load_state_dict(saved)
    assert seen == [len(params)]
    assert other.metrics()["k"] == 5
    other.register_state_dict_pre_hook(lambda o: seen.append(o.param_groups[0]["k"]))
    run(other, others, 1)
    other.state_dict()
    assert seen[-1] == 6


def test_run_state_is_in_the_groups_from_construction() -> None:
    optimizer = AdamCScheduleFreePlus(make_params([(3,)]))
    fresh = set(optimizer.state_dict()["param_groups"][0])
    run(optimizer, optimizer.param_groups[0]["params"], 2)
    assert set(optimizer.state_dict()["param_groups"][0]) == fresh
    assert {
        "k",
        "weight_sum",
        "lr_max",
        "grad_l1_ema",
        "scheduled_lr",
        "ckp1",
        "train_mode",
        "skipped_steps",
        "consecutive_skipped_steps",
        "optimizer",
    } <= fresh


@pytest.mark.parametrize(("key", "value"), [("f_star", 0.0), ("max_lr", None)])
def test_older_state_without_a_key_loads(key: str, value: Any) -> None:
    optimizer = AdamCScheduleFreePlus(make_params([(3,)]))
    saved = optimizer.state_dict()
    del saved["param_groups"][0][key]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0][key] == value
    run(optimizer, optimizer.param_groups[0]["params"], 2)
    assert optimizer.metrics()["k"] == 2


def test_torch_distributed_checkpoint_round_trip() -> None:
    """Its loaders initialise state with a step at lr 0, and restore only keys that exist."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    def make_model() -> tuple[nn.Module, AdamCScheduleFreePlus]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).bfloat16()
        return model, AdamCScheduleFreePlus(model.parameters(), **EVERYTHING)

    model, optimizer = make_model()
    run(optimizer, list(model.parameters()), 4)
    saved = get_optimizer_state_dict(model, optimizer)
    other_model, other = make_model()
    other.train()
    other_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other_model, other, saved)
    for o, m in ((optimizer, model), (other, other_model)):
        run(o, list(m.parameters()), 8, skip=4)
    a = snapshot(optimizer, list(model.parameters()))
    b = snapshot(other, list(other_model.parameters()))
    assert_same_bits(a["params"], b["params"])
    assert_same_bits(a["state"]["state"], b["state"]["state"])


def test_buffers_are_loaded_in_an_order_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes place the same buffer at the same time, whatever the order in their files and sets."""
    optimizer, params = make("cpu", torch.bfloat16)
    run(optimizer, params, 2)
    saved = optimizer.state_dict()
    for index, state in saved["state"].items():
        saved["state"][index] = dict(reversed(state.items()))
    placed: list[Any] = []

    def record(value: Any, param: Any) -> Any:
        placed.append(value)
        return value

    monkeypatch.setattr(own, "placed_as", record)
    optimizer.load_state_dict(saved)
    names = ("exp_avg", "exp_avg_sq", "displacement", "master_param")
    expected = [saved["state"][index][name] for index in range(len(params)) for name in names]
    assert list(map(id, placed)) == list(map(id, expected))
