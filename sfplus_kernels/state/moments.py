"""The moments and e of one parameter in any format: float32 numbers of what is kept, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sfplus_kernels.contract.eight_bits import (
    BLOCK,
    HALF_OF_MOMENT,
    SMALLEST,
    exp_avg_codes,
    exp_avg_of,
    exp_avg_sq_codes,
    exp_avg_sq_of,
)
from sfplus_kernels.contract.formats import CODES, EXPONENTS, asked, is_quarter
from sfplus_kernels.processes.sharding import local, rows_in_blocks
from sfplus_kernels.state.containers import TensorState


def fits_blocks(param: Tensor) -> bool:
    """Whether codes of this parameter may be kept: of its shape, and of how it is divided."""
    return param.numel() >= SMALLEST and rows_in_blocks(param, BLOCK)


def goes_in_blocks(param: Tensor, state: Mapping[str, object] | None = None) -> bool:
    """Whether it is kept in codes where ``"8bit"`` is asked for.

    Not where its memory is not row by row: the step would need a copy that is. One that began so goes on.
    """
    began = state is not None and is_quarter(state)
    return fits_blocks(param) and (began or local(param).is_contiguous())


def moments_of(state: TensorState) -> dict[str, Tensor]:
    """The moments that are kept, each as what this process holds of it: codes in float32."""
    found = {}
    v: Tensor | None = None
    for name in sorted(asked(state), reverse=True):  # exp_avg_sq before exp_avg
        if name == "displacement":
            continue
        if name in state:
            found[name] = local(state[name])
        elif name == "exp_avg_sq":
            v = exp_avg_sq_of(local(state[CODES[name]]), local(state[EXPONENTS]))
            found[name] = v
        else:
            assert v is not None  # there is no m in codes without v
            found[name] = exp_avg_of(local(state[CODES[name]]), v)
    return {name: found[name] for name in asked(state) if name in found}


def in_codes(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``moments_of`` -> the buffers of ``Format.QUARTER``, rounded to the nearest."""
    if "exp_avg_sq" not in found:
        return {}
    codes, exponents = exp_avg_sq_codes(found["exp_avg_sq"].float(), HALF_OF_MOMENT)
    result = {CODES["exp_avg_sq"]: codes, EXPONENTS: exponents}
    if "exp_avg" in found:
        v = exp_avg_sq_of(codes, exponents)
        result[CODES["exp_avg"]] = exp_avg_codes(found["exp_avg"].float(), v, HALF_OF_MOMENT)
    return {name: value.contiguous() for name, value in result.items()}
