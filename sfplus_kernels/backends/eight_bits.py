"""How the eager backend keeps state in 8 bits a number (``Format.QUARTER``).

Each buffer takes its own bits of an element's random word, and half of the last of them. What the codes mean
is to be read in reference/state_in_8_bits.py; they are made in contract/eight_bits.py.
"""

from __future__ import annotations

from torch import Tensor

from sfplus_kernels.backends import sixteen_bits
from sfplus_kernels.contract import eight_bits
from sfplus_kernels.contract.backend import Entry


def moments(entry: Entry) -> dict[str, Tensor]:
    """Those that there are, in float32."""
    found = {}
    if entry.exp_avg_sq is not None:
        assert entry.exponents is not None
        v = eight_bits.exp_avg_sq_of(entry.exp_avg_sq, entry.exponents)
        found["exp_avg_sq"] = v
        if entry.exp_avg is not None:
            found["exp_avg"] = eight_bits.exp_avg_of(entry.exp_avg, v)
    return found


def stored(new: dict[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """The moments and e, those that there are, as they are stored: v first, whose root is the unit of m."""
    result = {}
    if "displacement" in new:
        result["displacement"] = sixteen_bits.displacement(new["displacement"], _of_e(words))
    if "exp_avg_sq" in new:
        added = ((words >> 18 & 0x1FF) << 11) + (1 << 10)
        codes, exponents = eight_bits.exp_avg_sq_codes(new["exp_avg_sq"], added)
        result |= {"exp_avg_sq": codes, "exponents": exponents}
        if "exp_avg" in new:
            added = ((words >> 27) << 15) + (1 << 14)
            v = eight_bits.exp_avg_sq_of(codes, exponents)
            result["exp_avg"] = eight_bits.exp_avg_codes(new["exp_avg"], v, added)
    return result


def parts(y: Tensor, words: Tensor | None) -> tuple[Tensor, Tensor]:
    """A bfloat16 parameter and ``y_low``; without random ``words`` to the nearest."""
    return eight_bits.parts(y, eight_bits.HALF_OF_Y if words is None else words & 0xFF)


def _of_e(words: Tensor) -> Tensor:
    return (words >> 8 & 0x3FF) << 3 | 4
