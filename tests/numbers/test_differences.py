"""Where we differ from upstream on purpose: what upstream does, and what this package does.

Late first gradients and gradients that are overwritten are in test_family_inputs.py, parameters without a
gradient in test_closure_forms.py, bases and learning rates of the wrapper in test_wrapper.py.
"""

import copy
from typing import Any

import pytest
import torch
from support import BACKENDS, assert_same_bits, device_of, make_params
from support.family import FAMILY, NAMESAKES, PLAIN, drive, outcome

PLAIN_NAMESAKES = [name for name in NAMESAKES if name in PLAIN]


def beta(name: str, value: float) -> dict[str, Any]:
    return {"momentum": value} if "sgd" in name else {"betas": (value, 0.9)}


@pytest.mark.parametrize("name", NAMESAKES)
def test_beta_zero(name: str) -> None:
    """Upstream divides by beta to find x, or refuses; here y is z, and x the average."""

    def upstream() -> None:
        params = make_params([(5, 3)])
        optimizer = FAMILY[name].upstream(params, foreach=False, **beta(name, 0.0))
        drive(optimizer, params, 2)
        optimizer.eval()

    with pytest.raises((ZeroDivisionError, ValueError)):
        upstream()
    params = make_params([(5, 3)])
    optimizer = FAMILY[name].ours(params, lr=0.1, **beta(name, 0.0))
    found = outcome(optimizer, params, 20)
    x, y, z = found.iterates[0]
    torch.testing.assert_close(y, z, rtol=1e-14, atol=1e-14)
    assert float((x - z).abs().max()) > 1e-3
    optimizer.eval()
    torch.testing.assert_close(params[0].detach(), x, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMESAKES)
def test_beta_one(name: str) -> None:
    """y is x; upstream's SGD refuses it."""
    params = make_params([(5, 3)])
    if "sgd" in name:
        with pytest.raises(ValueError, match="between 0 and 1"):
            FAMILY[name].upstream(params, **beta(name, 1.0))
    optimizer = FAMILY[name].ours(params, lr=0.1, **beta(name, 1.0))
    x, y, z = outcome(optimizer, params, 20).iterates[0]
    torch.testing.assert_close(y, x, rtol=1e-14, atol=1e-14)
    assert float((x - z).abs().max()) > 1e-3


@pytest.mark.parametrize("name", PLAIN_NAMESAKES)
def test_state_keeps_its_dtypes_when_it_is_loaded(name: str) -> None:
    """Upstream leaves loading to torch, which casts the state to the dtype of the parameter."""
    params = make_params([(5, 3)], torch.bfloat16)
    theirs = FAMILY[name].upstream(params, foreach=False)
    theirs.state[params[0]] = {"z": torch.randn(5, 3), "exp_avg_sq": torch.rand(5, 3)}
    theirs.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert theirs.state[params[0]]["z"].dtype == torch.bfloat16

    optimizer = FAMILY[name].ours(params)
    drive(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.load_state_dict(optimizer.state_dict())
    assert_same_bits(optimizer.state_dict()["state"], saved)
    assert optimizer.state[params[0]]["displacement"].dtype == torch.float32


@pytest.mark.parametrize("name", PLAIN_NAMESAKES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_of_low_precision_parameters_count(name: str, dtype: torch.dtype) -> None:
    """Upstream keeps y and z in the parameter's dtype, where they round to nothing."""

    def movement(make: Any) -> float:
        params = [torch.nn.Parameter(torch.ones(4, dtype=dtype))]
        optimizer = make(params, lr=1e-4)
        optimizer.train()
        for _ in range(30):
            params[0].grad = torch.ones_like(params[0])
            optimizer.step()
        if hasattr(optimizer, "iterates"):
            return float((1 - optimizer.iterates(params[0]).z).abs().max())
        return float((1 - optimizer.state[params[0]]["z"].float()).abs().max())

    assert movement(FAMILY[name].upstream) == 0
    assert 1e-5 < movement(FAMILY[name].ours) < 4e-3


# Triton's interpreter is slow: there one class
ATTACKS = [
    (backend, name, attack)
    for backend in BACKENDS
    for name in FAMILY
    for attack in ("NaN", "Inf", "frozen", "huge lr")
    if backend != "triton" or name == "adamw"
]


@pytest.mark.parametrize(("backend", "name", "attack"), ATTACKS)
def test_one_bad_parameter_leaves_the_others_alone(backend: str, name: str, attack: str) -> None:
    """What goes wrong in one tensor (a huge lr: in one group) does not reach those beside it."""

    def run(attacked: bool) -> list:
        params = make_params([(4,), (7,), (0,), (9,)], torch.float32, device_of(backend))
        groups = [{"params": params[1:]}, {"params": params[:1]}, {"params": []}]
        with torch.no_grad():
            if attacked and attack in ("NaN", "Inf"):
                params[0][1] = float(attack.lower())
            elif attacked and attack == "frozen":
                params[0].requires_grad_(False)
            elif attacked and attack == "huge lr":
                groups[1]["lr"] = 1e29
        optimizer = FAMILY[name].ours(groups, backend=backend, **FAMILY[name].everything)
        optimizer.train()
        for _ in range(7):

            def closure() -> None:
                for p in params:
                    p.grad = torch.ones_like(p) if p.requires_grad else None

            if name in PLAIN:
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)
        optimizer.eval()
        return [p.detach().clone() for p in params]

    attacked, plain = run(True), run(False)
    assert_same_bits(attacked[1:], plain[1:])
    assert all(bool(p.isfinite().all()) for p in plain)
    assert not torch.equal(attacked[0], plain[0])
