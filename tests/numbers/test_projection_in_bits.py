"""Rows of a fixed norm with state of 16 and of 8 bits: what must hold of x, y and z as they are stored."""

from typing import Any

import pytest
import torch
from support import BACKENDS, device_of, make_params, set_gradients, stream
from test_projection import CASES, few, finish, norms, take, z_of
from torch import Tensor

import sfplus_kernels as ours
from sfplus_kernels.contract.formats import low_of, whole

BOTH = [torch.float32, torch.bfloat16]
FORMATS = ["16bit", "8bit"]
SHAPES = [(5, 64), (4, 8, 4), (6, 96)]


def stored_place(optimizer: Any, param: Any) -> Tensor:
    """Of each row of z, how far roundings to the next place move it: of e, and of y where it is rounded."""
    state = optimizer.state[param]
    far = torch.full((len(param),), 2e-6, dtype=torch.float64)
    if "displacement" in state:
        far += 2.0**-10 * norms(state["displacement"])
    if "y_low_byte" in state:
        far += 2.0**-15 * norms(param.detach())
    return far


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("state_format", "dtype"),
    [
        ("16bit", torch.float32),
        ("8bit", torch.bfloat16),
        pytest.param("16bit", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("8bit", torch.float32, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "case",
    [
        "adamw, averaged",
        "adamw",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("sgd, averaged", "sgd")),
    ],
)
def test_z_on_the_sphere_x_and_y_within(
    case: str, state_format: str, dtype: torch.dtype, backend: str
) -> None:
    """To a place of what is stored, which is the least that there is."""
    name, arguments = CASES[case]
    params = make_params(SHAPES, dtype, device=device_of(backend))
    made = {"row_norm": 3.0, "state_format": state_format, "backend": backend, **arguments}
    optimizer = getattr(ours, name)(params, **made)
    free = make_params([(7,)], dtype, device=device_of(backend))
    optimizer.add_param_group({"params": free, "row_norm": None})
    shortest = 3.0
    for _ in take(optimizer, [*params, *free], few(backend, 20)):
        for p in params:
            z = z_of(optimizer, p)
            if "y_low" in optimizer.state[p] or "y_low_byte" in optimizer.state[p]:
                z = z_of_parts(optimizer, p, z)
            far = (norms(z) - 3).abs() - stored_place(optimizer, p).to(z.device)
            assert far.max() <= 0
            if hasattr(optimizer, "iterates"):
                x, y, _ = optimizer.iterates(p)
                assert max(norms(x).max(), norms(y).max()) <= 3 * (1 + 1e-3)
                shortest = min(shortest, float(norms(x).min()))
    assert shortest < 3 * (1 - 1e-4) or not hasattr(optimizer, "iterates")


def z_of_parts(optimizer: Any, param: Any, found: Tensor) -> Tensor:
    """Of what is averaged z is found; of what is not, y of its two parts."""
    if hasattr(optimizer, "iterates"):
        return found
    return whole(param.detach(), low_of(optimizer.state[param]))


@pytest.mark.parametrize(
    ("name", "state_format", "dtype"),
    [
        ("SGDScheduleFree", "8bit", torch.bfloat16),
        *(
            pytest.param("AdamWScheduleFree", state_format, dtype, marks=pytest.mark.slow)
            for state_format in FORMATS
            for dtype in BOTH
        ),
    ],
)
def test_the_mean_of_many_roundings_is_the_step_of_full_state(
    name: str, state_format: str, dtype: torch.dtype
) -> None:
    """One step from the same stored state, with 300 seeds: y and e are rounded twice, and within five
    standard errors of those that nothing was rounded of."""
    params = make_params([(6, 64)], dtype)
    start = {"lr": 0.05, "row_norm": 3.0, "state_format": state_format, "backend": "cpu"}
    first = getattr(ours, name)(params, **start)
    finish(first, params, 3)
    weights, state = params[0].detach().clone(), first.state_dict()
    _, gradients = next(iter(stream([(6, 64)], 1, seed=9)))

    def stepped(optimizer: Any, param: Any) -> tuple[Tensor, Tensor]:
        set_gradients([param], gradients)
        optimizer.step()
        x, y, z = optimizer.iterates(param)
        return y.double(), (z - x).double()

    full = torch.nn.Parameter(weights.clone())
    exact = getattr(ours, name)([full], **{**start, "state_format": "float32"})
    exact.load_state_dict(first.state_dict_in("float32"))
    y, e = stepped(exact, full)
    sums = [[torch.zeros(6, 64, dtype=torch.float64) for _ in range(2)] for _ in "ye"]
    for seed in range(300):
        param = torch.nn.Parameter(weights.clone())
        optimizer = getattr(ours, name)([param], **start)
        optimizer.load_state_dict(state)
        optimizer.param_groups[0]["rounding_seed"] = seed
        for (total, squares), found, right in zip(
            sums, stepped(optimizer, param), (y, e), strict=True
        ):
            error = found - right
            total += error
            squares += error.square()
    for total, squares in sums:
        mean = total / 300
        spread = ((squares / 300 - mean.square()).clamp(min=0) / 300).sqrt()
        assert (mean.abs() <= 5 * spread + 2e-7).all()
    assert sums[1][1].max() > 0  # e was rounded
