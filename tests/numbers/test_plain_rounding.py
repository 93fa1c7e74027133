"""Optimizers that average nothing, with state in 16 and 8 bits: a step against the references in float64, and
a whole run with a schedule against float32 state."""

import copy
from typing import Any

import pytest
import torch
from support import BACKENDS, device_of, make_params, set_gradients, steps_for, stream
from support.plain import PLAIN, follow_schedule, plain_groups

from sfplus_kernels import SGD, AdamW
from sfplus_kernels.contract.formats import whole
from sfplus_kernels.state.moments import moments_of

SHAPES = [(0,), (7,), (33, 5), (), (64, 64), (80, 3, 32), (0, 64)]
FORMATS = ["16bit", "8bit"]
NAMES = [
    "adamw",
    "sgd",
    *(pytest.param(n, marks=pytest.mark.slow) for n in PLAIN if n not in ("adamw", "sgd")),
]
"""The kernels of the others are the same, or much the same."""
PLACES = {  # of what is stored: a last place, as a share of the number
    "16bit": {"exp_avg": 2**-8, "exp_avg_sq": 2**-7, "momentum_buffer": 2**-8},
    "8bit": {"exp_avg": 0.126, "exp_avg_sq": 0.1251, "momentum_buffer": 2**-8},
}


def y_of(optimizer: Any, p: torch.Tensor) -> torch.Tensor:
    state, value = optimizer.state[p], p.detach()
    low = state.get("y_low", state.get("y_low_byte"))
    y = value.float() if low is None else whole(value, low)
    return y.double().cpu()


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_that_of_the_reference_to_a_last_place(
    backend: str, name: str, dtype: torch.dtype, state_format: str
) -> None:
    """From the state that a run has left, in two groups with weight decay and a schedule."""
    if backend == "triton" and name in ("adamc", "sgd, no momentum"):
        pytest.skip("the kernels of the others, or none of a format")
    member, n = PLAIN[name], steps_for(backend, 20)
    params = make_params(SHAPES, dtype, device_of(backend))
    optimizer = member.ours(
        plain_groups(params, name), backend=backend, state_format=state_format, **member.everything
    )
    gradients = [given for _, given in stream([p.shape for p in params], n + 1)]
    for k in range(n):
        follow_schedule(k, optimizer)
        set_gradients(params, gradients[k])
        optimizer.step()
    twins = [torch.nn.Parameter(y_of(optimizer, p)) for p in params]
    twin = member.reference(plain_groups(twins, name), **member.everything)
    for p, q in zip(params, twins, strict=True):
        kept = {
            name: value.double().cpu() for name, value in moments_of(optimizer.state[p]).items()
        }
        twin.state[q].update(copy.deepcopy(kept) | {"step": n})
    for group, own in zip(twin.param_groups, optimizer.state_dict()["param_groups"], strict=True):
        group["lr_max"] = own["lr_max"]
    follow_schedule(n, optimizer, twin)
    set_gradients(params, gradients[n])
    for p, q in zip(params, twins, strict=True):
        q.grad = p.grad.double().cpu()  # as it is in the parameter's dtype
    optimizer.step()
    twin.step()
    rounded = 0.0
    for p, q in zip(params, twins, strict=True):
        found, expected = moments_of(optimizer.state[p]), twin.state[q]
        in_8_bits = "exp_avg_sq_codes" in optimizer.state[p]
        for moment, value in found.items():
            share = PLACES["8bit" if in_8_bits else "16bit"][moment]
            place = share * expected[moment].abs() + 1e-7  # float32 computes it
            if in_8_bits and moment == "exp_avg":  # below 2^-6 of its unit places are equal
                place = torch.maximum(place, found["exp_avg_sq"].double().cpu().sqrt() / 32 * 2**-9)
            error = (value.double().cpu() - expected[moment]).abs()
            assert (error <= 1.01 * place).all(), moment
            rounded = max(rounded, float((error / place).max()) if error.numel() else 0)
        places = 2**-15 if in_8_bits and dtype == torch.bfloat16 else 2e-6
        assert torch.allclose(y_of(optimizer, p), q.detach(), rtol=places, atol=2e-6)
    assert rounded > 0.1 or name == "sgd, no momentum"


SIZE, STEPS, SEEDS = (64, 64), 10_000, 2
RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (AdamW, {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0}),
    "adamw, slow v": (AdamW, {"lr": 2e-3, "betas": (0.9, 0.999), "weight_decay": 0}),
    "sgd": (SGD, {"lr": 0.05, "momentum": 0.95, "weight_decay": 0}),
}


def excess_loss(name: str, state_format: str, dtype: torch.dtype, seed: int) -> float:
    """Of a quadratic with noisy gradients, after a linear decay of the learning rate to 0."""
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.logspace(-2, 0, SIZE[0] * SIZE[1]).view(SIZE)
    best = torch.randn(SIZE, generator=generator)
    p = torch.nn.Parameter(torch.zeros(SIZE, dtype=dtype))
    cls, arguments = RUNS[name]
    optimizer = cls([p], backend="cpu", state_format=state_format, **arguments)
    peak = arguments["lr"]
    for k in range(STEPS):
        optimizer.param_groups[0]["lr"] = peak * (1 - k / STEPS)
        noise = torch.randn(SIZE, generator=generator)
        p.grad = (curvature * (p.detach().float() - best) + noise).to(dtype)
        optimizer.step()
    y = y_of(optimizer, p) if state_format != "float32" or dtype == torch.float32 else None
    weights = optimizer.state[p]["master_param"].double() if y is None else y
    return float((curvature * (weights - best).square()).mean()) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("adamw", torch.float32), ("adamw, slow v", torch.bfloat16), ("sgd", torch.bfloat16)],
)
def test_ten_thousand_steps_end_where_float32_state_does(name: str, dtype: torch.dtype) -> None:
    """The same gradients but for what roundings do: the mean over seeds, within 3 %."""
    losses = {
        state_format: [excess_loss(name, state_format, dtype, seed) for seed in range(SEEDS)]
        for state_format in ("float32", "16bit", "8bit")
    }
    means = {state_format: sum(each) / SEEDS for state_format, each in losses.items()}
    assert 0 < means["float32"] < 0.1
    for state_format in FORMATS:
        assert losses[state_format] != losses["float32"]
        assert abs(means[state_format] / means["float32"] - 1) < 0.03, means
