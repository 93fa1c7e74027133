"""What the tests of ``state_format`` share: short runs, and how close codes of 8 bits must be."""

from typing import Any

import torch
from support import device_of, make_params, run

from sfplus_kernels import AdamCScheduleFreePlus
from sfplus_kernels.state.moments import moments_of

SHAPES = [(0,), (7,), (33, 5), (), (64, 3), (64, 2, 32)]
DTYPES = [torch.float32, torch.bfloat16]
MODES = ["train", "eval"]
FORMATS = ["16bit", "8bit"]
BYTES_OF_8 = {  # in state, of 4,096 elements of each class: with the exponents
    "exp_avg": 1,
    "exp_avg_sq": 1 + 1 / 32,
    "displacement": 2,
    "master_param": 1,  # y_low_byte
}


def make(
    dtype: torch.dtype, backend: str = "cpu", state_format: str = "16bit", **more: Any
) -> tuple[Any, list]:
    params = make_params(SHAPES, dtype, device_of(backend))
    arguments = {"lr": 0.3, "weight_decay": 1.0, **more}
    return AdamCScheduleFreePlus(
        params, backend=backend, state_format=state_format, **arguments
    ), params


def steps(optimizer: Any, params: list, n: int, skip: int = 0) -> None:
    """Now and then a gradient is missing."""
    run(optimizer, params, n, skip=skip, missing=0.2)


def load(optimizer: Any, params: list, saved: Any, *, model_first: bool = True) -> None:
    if not model_first:
        optimizer.load_state_dict(saved[0])
    with torch.no_grad():
        for p, value in zip(params, saved[1], strict=True):
            p.copy_(value)
    if model_first:
        optimizer.load_state_dict(saved[0])


def compare_codes(kept: Any, state: Any) -> None:
    """To half a last place: 6.3 % of m and of v, and what v's rounding makes of m's unit."""
    assert not {"exp_avg", "exp_avg_sq"} & state.keys()
    assert state["exp_avg_codes"].dtype == state["exp_avg_sq_codes"].dtype == torch.uint8
    found = moments_of(state)
    v, m = kept["exp_avg_sq"], kept["exp_avg"]
    assert torch.allclose(found["exp_avg_sq"], v, rtol=0.0626, atol=0)
    assert (found["exp_avg_sq"] > 0).equal(v > 0)
    # below 2^-6 of E4M3's unit places are equal
    place = found["exp_avg_sq"].sqrt() / 32 * 2**-9
    assert ((found["exp_avg"] - m).abs() <= 0.0626 * m.abs() + 0.51 * place).all()
