"""Arguments and bad input of the optimizers that average nothing."""

import inspect
from typing import Any

import pytest
import torch
from support import BACKENDS, assert_same_bits, device_of, make_params
from support.plain import PLAIN

from sfplus_kernels import SGD, AdamC, AdamW

KINDS = pytest.mark.parametrize("name", PLAIN)
MAKERS = {"AdamW": AdamW, "AdamC": AdamC, "SGD": SGD}

BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (AdamW, {"lr": -0.1}, ValueError, r"lr is -0.1; expected a number in \[0, inf\)"),
    (AdamW, {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] is 1.0"),
    (AdamW, {"eps": 0.0}, ValueError, "eps is 0.0"),
    (AdamW, {"weight_decay": -1}, ValueError, "weight_decay is -1"),
    (AdamW, {"amsgrad": True}, ValueError, "amsgrad is True, which AdamW does not have"),
    (AdamC, {"amsgrad": True}, ValueError, "amsgrad is True, which AdamC does not have"),
    (AdamW, {"differentiable": True}, ValueError, "differentiable is True, which AdamW"),
    (SGD, {"differentiable": True}, ValueError, "differentiable is True, which SGD"),
    (AdamW, {"state_format": "4bit"}, ValueError, "'4bit'; expected 'float32', '16bit' or '8bit'"),
    (SGD, {"state_format": "16bit"}, ValueError, "'16bit', but a parameter is float64"),
    (AdamC, {"max_lr": 0.0}, ValueError, "max_lr is 0.0"),
    (AdamC, {"max_lr": "small"}, TypeError, "max_lr is a str"),
    (AdamC, {"lr": 0.2, "max_lr": 0.1}, ValueError, r"lr is 0.2, above max_lr \(0.1\)"),
    (SGD, {"momentum": 1.0}, ValueError, r"momentum is 1.0; expected a number in \[0, 1\)"),
    (SGD, {"dampening": 1.1}, ValueError, r"dampening is 1.1; expected a number in \[0, 1\]"),
    (SGD, {"dampening": "half"}, TypeError, "dampening is a str"),
    (AdamW, {"backend": "fast"}, ValueError, "unknown backend 'fast'"),
]


@pytest.mark.parametrize(("make", "arguments", "error", "message"), BAD)
def test_bad_arguments(make: Any, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(make_params([(3,)]), **arguments)
    if "backend" in arguments or "differentiable" in arguments:
        return
    params = make_params([(3,), (4,)])
    optimizer = make(params[:1])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": params[1:], **arguments})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0].update(arguments)  # and what was written into a group
    params[0].grad = torch.ones_like(params[0])
    before = params[0].detach().clone()
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_same_bits(before, params[0].detach())
    assert not optimizer.state[params[0]]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_arguments_are_torchs_and_then_by_keyword(name: str) -> None:
    ours = inspect.signature(PLAIN[name].ours).parameters
    torchs = inspect.signature(PLAIN[name].torchs).parameters
    for key, parameter in torchs.items():
        assert key in ours
        assert ours[key].kind == parameter.kind
        assert ours[key].default == parameter.default
    by_position = [k for k, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == [k for k, p in torchs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_bad_gradients_change_nothing(make: Any) -> None:
    params = make_params([(3, 2), (4,)])
    optimizer = make(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.ones(3, 2, dtype=torch.float64).to_sparse()
    with pytest.raises(TypeError, match="the gradient of parameter 0 is sparse"):
        optimizer.step()
    assert_same_bits(before, [p.detach() for p in params])
    assert optimizer.metrics()["k"] == 1


@pytest.mark.parametrize("more", [{}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_is_refused_where_torch_refuses_it(more: dict[str, Any]) -> None:
    """Not in groups, where torch takes it: a group may be without momentum."""
    with pytest.raises(ValueError, match="nesterov is True, momentum is .*expected a momentum"):
        SGD(make_params([(3,)]), nesterov=True, **more)
    with pytest.raises(ValueError, match="Nesterov"):
        torch.optim.SGD(make_params([(3,)]), nesterov=True, **more)
    group = {"params": make_params([(3,)]), "momentum": 0.0, **more}
    assert SGD([group], momentum=0.9, nesterov=True).param_groups[0]["nesterov"]


def test_unknown_arguments_are_refused() -> None:
    for make in MAKERS.values():
        with pytest.raises(TypeError, match="warmup"):
            make(make_params([(3,)]), warmup=3)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_state_that_was_moved_or_replaced_is_found(make: Any) -> None:
    """Hands on the state between two steps: the next one is as if it had been so all along."""
    params, others = make_params([(8, 3), (5,)]), make_params([(8, 3), (5,)])
    arguments = {"momentum": 0.9} if make is SGD else {}
    touched, left = make(params, **arguments), make(others, **arguments)
    for k in range(6):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.full_like(p, k - 2.5)
            q.grad = torch.full_like(q, k - 2.5)
        for state in touched.state.values():
            for key in state:
                if state[key].dim():
                    state[key] = state[key].clone()
        if k == 3:
            touched.state[params[0]] = dict(touched.state[params[0]])
            params[1].data = params[1].data.clone()
        touched.step()
        left.step()
    assert_same_bits([p.detach() for p in params], [p.detach() for p in others])
    del touched.state[params[1]]
    touched.step()
    assert float(touched.state[params[1]]["step"]) == 1


@KINDS
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_left_alone(name: str, backend: str) -> None:
    member = PLAIN[name]
    for more in ({}, {"max_grad_norm": 0.1}, {"skip_nonfinite": True}):
        params = make_params([(7,), (3, 5)], device=device_of(backend))
        optimizer = member.ours(params, backend=backend, **member.everything, **more)
        for p in params:
            p.grad = torch.full_like(p, 0.7)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert_same_bits(before, [p.grad for p in params])


@KINDS
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_and_no_learning_rate(name: str, backend: str) -> None:
    """Nothing moves; moments do where there is a gradient, as in torch."""
    member = PLAIN[name]
    params, others = (
        make_params([(7,), (3, 5)], device=device_of(backend)),
        make_params([(7,), (3, 5)]),
    )
    mine = member.ours(params, backend=backend, **{**member.everything, "lr": 0.0})
    theirs = member.torchs(others, **{**member.everything, "lr": 0.0})
    mine.step()
    assert mine.metrics()["no_gradients"] == 1
    start = [p.detach().clone() for p in params]
    for lr in (0.0, 0.0, 0.01):
        assert_same_bits(start, [p.detach() for p in params])
        for optimizer, its in ((mine, params), (theirs, others)):
            optimizer.param_groups[0]["lr"] = lr
            for k, p in enumerate(its):
                p.grad = torch.full_like(p, 0.5 + k)
            optimizer.step()
    more = {"normalized": False} if name == "adamc" else {}
    if not more:
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-12, atol=1e-12)


@KINDS
def test_a_closure_runs_with_gradients_and_its_loss_comes_back(name: str) -> None:
    (param,) = make_params([(4,)])
    optimizer = PLAIN[name].ours([param], **PLAIN[name].everything)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [float(optimizer.step(closure)) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    with pytest.raises(TypeError, match="step.. got a Tensor as its closure"):
        optimizer.step(torch.tensor(1.0))


BAD_GROUPS: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "empty parameter list"),
    ([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))], TypeError, "complex64"),
    (
        [
            {"params": [torch.nn.Parameter(torch.ones(3))], "skip_nonfinite": True},
            {"params": [torch.nn.Parameter(torch.ones(3))]},
        ],
        ValueError,
        "skip_nonfinite",
    ),
]


@pytest.mark.parametrize(("params", "error", "message"), BAD_GROUPS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_bad_parameters(make: Any, params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(params)
