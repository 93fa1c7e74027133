"""What bad input gets: an error that names what came and what to do, and nothing has changed."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import (
    EVERYTHING,
    allow_gradients_of_any_dtype,
    assert_same_bits,
    device_of,
    make_params,
    run,
    set_gradients,
    snapshot,
)
from torch import nn

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

HYPERPARAMETERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -0.1}, ValueError, r"lr is -0.1; expected a number in \[0, inf\)"),
    ({"lr": float("nan")}, ValueError, "lr is nan"),
    ({"lr": float("inf")}, ValueError, "lr is inf"),
    ({"lr": "fast"}, TypeError, "lr is a str"),
    ({"lr": torch.tensor([0.1, 0.2])}, ValueError, "one element"),
    ({"lr": torch.tensor(-1.0)}, ValueError, "lr is -1.0"),
    ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] is 1.0"),
    ({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\] is -0.1"),
    ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] is 1.0"),
    ({"betas": 0.9}, TypeError, "expected two numbers"),
    ({"betas": (0.9, 0.95, 0.99)}, TypeError, "expected two numbers"),
    ({"sf_beta1": 1.5}, ValueError, "sf_beta1 is 1.5"),
    ({"sf_beta1": -0.5}, ValueError, "sf_beta1 is -0.5"),
    ({"sf_beta1": 1.0, "sf_beta1_anneal_steps": 5}, ValueError, "sf_beta1 is 1.0"),
    ({"sf_beta1_max": 1.0, "sf_beta1_anneal_steps": 5}, ValueError, "sf_beta1_max is 1.0"),
    ({"sf_beta1_max": 2.0}, ValueError, "sf_beta1_max is 2.0"),
    ({"sf_beta1_anneal_steps": -1}, ValueError, "sf_beta1_anneal_steps is -1"),
    ({"eps": 0.0}, ValueError, r"eps is 0.0; expected a number in \(0, inf\)"),
    ({"eps": -1e-8}, ValueError, "eps"),
    ({"weight_decay": -1}, ValueError, "weight_decay is -1"),
    ({"polyak_beta": 1.0}, ValueError, "polyak_beta is 1.0"),
    ({"polyak_beta": -0.1}, ValueError, "polyak_beta is -0.1"),
    ({"c_warmup": -1}, ValueError, "c_warmup is -1"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps is -1"),
    ({"max_lr": 0.0}, ValueError, r"max_lr is 0.0; expected a number in \(0, inf\), or None"),
    ({"max_lr": -1}, ValueError, "max_lr is -1"),
    ({"max_lr": float("nan")}, ValueError, "max_lr is nan"),
    ({"max_lr": float("-inf")}, ValueError, "max_lr is -inf"),
    ({"max_lr": "small"}, TypeError, "max_lr is a str"),
    ({"max_lr": torch.ones(2)}, TypeError, "max_lr is a Tensor"),
    ({"r": float("nan")}, ValueError, "r is nan"),
    ({"weight_lr_power": float("inf")}, ValueError, "weight_lr_power is inf"),
    ({"f_star": float("nan")}, ValueError, "f_star is nan"),
    ({"backend": "cuda-graph"}, ValueError, "unknown backend 'cuda-graph'.*cpu.*triton.*eager"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), HYPERPARAMETERS)
def test_hyperparameters(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdamCScheduleFreePlus(make_params([(3,)]), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"betas": (0.9, 2.0)}, "betas"),
        ({"max_lr": -0.1}, "max_lr is -0.1"),
        ({"f_star": 1.0}, "group 1 has f_star=1.0, group 0 has 0.0"),
    ],
)
def test_hyperparameters_spoiled_later(backend: str, change: dict[str, Any], message: str) -> None:
    params = make_params([(3,), (4,)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(
        [{"params": params[:1]}, {"params": params[1:]}], backend=backend, **EVERYTHING
    )
    run(optimizer, params, 2)
    before = snapshot(optimizer, params)
    good = {key: optimizer.param_groups[1][key] for key in change}
    optimizer.param_groups[1].update(change)
    with pytest.raises(ValueError, match=message):
        optimizer.step(loss=1.0)
    optimizer.param_groups[1].update(good)
    assert_same_bits(snapshot(optimizer, params), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sf_beta1", 0.7), ("polyak_beta", 0.1), ("sf_beta1_anneal_steps", 3), ("maximize", True)],
)
def test_groups_that_disagree_on_global_settings(name: str, value: object) -> None:
    a, b = make_params([(3,), (3,)])
    with pytest.raises(ValueError, match=f"group 1 has {name}="):
        AdamCScheduleFreePlus([{"params": [a]}, {"params": [b], name: value}])
    optimizer = AdamCScheduleFreePlus([a])
    with pytest.raises(ValueError, match="set it once"):
        optimizer.add_param_group({"params": [b], name: value})
    assert len(optimizer.param_groups) == 1
    run(optimizer, [a], 1)


@pytest.mark.parametrize("empty", [[], iter([]), [{"params": []}]])
def test_empty_parameter_list(empty: Any) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        AdamCScheduleFreePlus(empty)


def test_parameters_on_several_devices() -> None:
    here, elsewhere = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))
    with pytest.raises(ValueError, match=r"several devices: cpu and meta"):
        AdamCScheduleFreePlus([here, elsewhere])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e5m2])
def test_parameter_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="has dtype.*expected one of float64, float32"):
        AdamCScheduleFreePlus([nn.Parameter(torch.zeros(3, dtype=dtype))])


def test_two_parameters_in_one_memory() -> None:
    a = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="share their memory"):
        AdamCScheduleFreePlus([a, nn.Parameter(a.data)])


@pytest.fixture
def ready(backend: str) -> tuple[AdamCScheduleFreePlus, list[nn.Parameter]]:
    params = make_params([(4, 3), (2,)], torch.float32, device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING)
    run(optimizer, params, 2)
    return optimizer, params


def sparse(p: nn.Parameter) -> None:
    p.grad = torch.zeros_like(p.detach()).to_sparse()


def complex_(p: nn.Parameter) -> None:
    allow_gradients_of_any_dtype(p)
    p.grad = torch.zeros_like(p, dtype=torch.complex64)


def integer(p: nn.Parameter) -> None:
    allow_gradients_of_any_dtype(p)
    p.grad = torch.zeros_like(p, dtype=torch.int32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(sparse, "sparse"), (complex_, "dtype torch.complex64"), (integer, "dtype torch.int32")],
)
@pytest.mark.parametrize("first_step", [True, False])
def test_gradients(
    backend: str, spoil: Callable[[nn.Parameter], None], message: str, first_step: bool
) -> None:
    params = make_params([(2,), (4, 3)], torch.float32, device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend, **EVERYTHING)
    optimizer.train()
    if not first_step:
        run(optimizer, params, 2)
    before = snapshot(optimizer, params)
    params[0].grad = torch.ones_like(params[0])
    spoil(params[1])
    with pytest.raises(TypeError, match=f"gradient of parameter 1.*{message}"):
        optimizer.step(loss=1.0)
    assert_same_bits(snapshot(optimizer, params), before)
    params[1].grad = None
    optimizer.step(loss=1.0)
    assert optimizer.metrics()["k"] == (1 if first_step else 3)


LOSSES: list[tuple[Any, type[Exception], str]] = [
    (None, ValueError, "got no loss"),
    (torch.ones(3), ValueError, r"shape \(3,\).*scalar"),
    (torch.ones(2), ValueError, r"shape \(2,\).*mean"),
    (torch.tensor(1j), TypeError, "complex"),
    (torch.tensor(True), TypeError, "bool"),
    ("1.0", TypeError, "is a str"),
    (True, TypeError, "is a bool"),
    (1j, TypeError, "is a complex"),
    ([1.0], TypeError, "is a list"),
]


@pytest.mark.parametrize(("loss", "error", "message"), LOSSES)
@pytest.mark.parametrize("way", ["loss", "closure", "step_func"])
def test_losses(ready: Any, loss: Any, error: type[Exception], message: str, way: str) -> None:
    optimizer, params = ready
    before = snapshot(optimizer, params)
    call = {
        "loss": lambda: optimizer.step(loss=loss),
        "closure": lambda: optimizer.step(lambda: loss),
        "step_func": lambda: optimizer.step_func(loss),
    }[way]
    with pytest.raises(error, match=message):
        call()
    assert_same_bits(snapshot(optimizer, params), before)


def test_two_losses(ready: Any) -> None:
    optimizer, _ = ready
    with pytest.raises(ValueError, match="a loss and a closure that returned one"):
        optimizer.step(lambda: 1.0, loss=1.0)


def test_step_in_eval_mode(ready: Any) -> None:
    optimizer, params = ready
    optimizer.eval()
    before = snapshot(optimizer, params)
    with pytest.raises(RuntimeError, match=r"eval mode.*call optimizer.train\(\)"):
        optimizer.step(loss=1.0)
    assert_same_bits(snapshot(optimizer, params), before)


def test_closure_that_raises_changes_nothing(ready: Any) -> None:
    optimizer, params = ready
    before = snapshot(optimizer, params)

    def closure() -> float:
        raise KeyError("from the model")

    with pytest.raises(KeyError, match="from the model"):
        optimizer.step(closure)
    assert_same_bits(snapshot(optimizer, params), before)


def test_state_dicts_that_do_not_fit(ready: Any) -> None:
    optimizer, params = ready
    before = snapshot(optimizer, params)
    good = optimizer.state_dict()

    other = torch.optim.AdamW(make_params([(4, 3), (2,)], torch.float32))
    with pytest.raises(
        ValueError, match="another optimizer.*expected one of AdamCScheduleFreePlus"
    ):
        optimizer.load_state_dict(other.state_dict())

    smaller = make_params([(4, 2), (2,)], torch.float32)
    wrong = AdamCScheduleFreePlus(smaller)
    run(wrong, smaller, 1)
    with pytest.raises(ValueError, match=r"parameter 0 has shape \(4, 2\).*expected \(4, 3\)"):
        optimizer.load_state_dict(wrong.state_dict())

    with pytest.raises(ValueError, match=r"groups of \[1\] parameters; expected \[2\]"):
        optimizer.load_state_dict(AdamCScheduleFreePlus(make_params([(2,)])).state_dict())

    double = make_params([(4, 3), (2,)])
    precise = AdamCScheduleFreePlus(double)
    run(precise, double, 1)
    with pytest.raises(ValueError, match="dtype torch.float64; expected"):
        optimizer.load_state_dict(precise.state_dict())

    coarse_params = make_params([(4, 3), (2,)], torch.bfloat16)
    coarse = AdamCScheduleFreePlus(coarse_params)
    run(coarse, coarse_params, 1)
    with pytest.raises(ValueError, match="master_param.*convert the model"):
        optimizer.load_state_dict(coarse.state_dict())

    vector = {**good, "state": {0: {**good["state"][0], "step": torch.zeros(2)}}}
    with pytest.raises(ValueError, match="step of parameter 0 has shape"):
        optimizer.load_state_dict(vector)
    assert_same_bits(snapshot(optimizer, params), before)


def test_parameter_that_changed_its_dtype(backend: str) -> None:
    device = device_of(backend)
    model = nn.Linear(3, 2).to(device)
    optimizer = AdamCScheduleFreePlus(model.parameters(), backend=backend)
    optimizer.train()
    model(torch.ones(3, device=device)).sum().backward()
    optimizer.step(loss=1.0)
    optimizer.zero_grad()
    model.to(torch.bfloat16)
    model(torch.ones(3, dtype=torch.bfloat16, device=device)).sum().backward()
    with pytest.raises(RuntimeError, match="make a new optimizer"):
        optimizer.step(loss=1.0)


def test_a_parameter_that_is_cut_where_it_is(backend: str) -> None:
    """Its gradient ends where its old memory goes on."""
    params = make_params([(4, 3)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
    run(optimizer, params, 2)
    params[0].data = params[0].data[:2]
    params[0].grad = torch.ones_like(params[0])
    before = snapshot(optimizer, params)
    with pytest.raises(RuntimeError, match=r"holds shape \(2, 3\), .*but its state is"):
        optimizer.step(loss=1.0)
    assert_same_bits(snapshot(optimizer, params), before)


def test_a_gradient_whose_memory_was_freed_since_the_last_step(backend: str) -> None:
    params = make_params([(4, 3), (0,)], device=device_of(backend))
    optimizer = AdamCScheduleFreePlus(params, backend=backend)
    run(optimizer, params, 2)
    params[0].grad = torch.ones_like(params[0])
    params[0].grad.untyped_storage().resize_(0)
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match="gradient of parameter 0 has the shape .* but no memory"):
        optimizer.step(loss=1.0)
    assert_same_bits(snapshot(optimizer, params), before)


def test_iterates_of_a_stranger(ready: Any) -> None:
    optimizer, _ = ready
    with pytest.raises(ValueError, match="not a parameter of this optimizer"):
        optimizer.iterates(torch.zeros(7))


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (AdamCScheduleFreePlus, {"loss": 1.0}),
        (functools.partial(AdamWScheduleFree, max_grad_norm=1.0), {}),
    ],
)
def test_groups_that_are_stepped_one_by_one(make: Any, loss: dict[str, float]) -> None:
    """As DeepSpeed's ZeRO does, where a number is formed of all gradients; one group is all right."""
    params = make_params([(3,), (4,)])
    optimizer = make([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.train()
    set_gradients(params, [torch.ones(3), torch.ones(4)])
    groups = optimizer.param_groups
    for group in groups:
        optimizer.param_groups = [group]
        with pytest.raises(RuntimeError, match=r"1 of the optimizer's 2 groups.*DeepSpeed"):
            optimizer.step(**loss)
        optimizer.param_groups = groups
    assert not optimizer.state
    optimizer.step(**loss)
