"""State in 8 bits: what each buffer stores and gives back, against reference/state_in_8_bits.py."""

import math

import pytest
import torch
from support import assert_same_bits, bits
from torch import Tensor

from sfplus_kernels.backends import eight_bits as eager
from sfplus_kernels.contract import eight_bits
from sfplus_kernels.contract.formats import whole
from sfplus_kernels.reference import state_in_8_bits as reference

N = 1 << 17


def words(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**32, (n,), generator=torch.Generator().manual_seed(seed))


def second_moments() -> Tensor:
    """Blocks of 32 of all sizes, with zeros, outliers, subnormal numbers, and what is not finite."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.randint(-150, 120, (N // 32, 1), generator=generator).expand(-1, 32).flatten()
    apart = torch.randint(-40, 4, (N,), generator=generator)
    v = torch.ldexp(torch.randn(N, generator=generator).square().double(), scale + apart).float()
    v[torch.rand(N, generator=generator) < 0.1] = 0
    v[:64] = 0
    v[64], v[100] = math.inf, math.nan
    v[200:232] = 1e-45
    v[5000] = torch.finfo(torch.float32).max
    return v


def kept(v: Tensor, random: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the eager backend stores of v and e = v, and v of it."""
    found = eager.stored({"exp_avg_sq": v, "displacement": v}, random)
    return found, eight_bits.exp_avg_sq_of(found["exp_avg_sq"], found["exponents"])


def test_codes_are_those_of_the_reference() -> None:
    v, random = second_moments(), words(N)
    found, stored = kept(v, random)
    codes, exponents = reference.stored_exp_avg_sq(v, random)
    assert torch.equal(found["exp_avg_sq"], codes)
    assert torch.equal(found["exponents"].flatten(), exponents)
    assert torch.equal(stored, reference.exp_avg_sq_of(codes, exponents))
    m = torch.ldexp(torch.randn(N), torch.randint(-20, 5, (N,))) * stored.sqrt()
    m[:3] = torch.tensor([math.inf, -0.0, 1e30])
    m = torch.where(m.isnan(), 0, m)
    found = eager.stored({"exp_avg": m, "exp_avg_sq": v, "displacement": v}, random)
    assert torch.equal(found["exp_avg"], reference.stored_exp_avg(m, stored, random))
    back = eight_bits.exp_avg_of(found["exp_avg"], stored)
    assert torch.equal(back, reference.exp_avg_of(found["exp_avg"], stored))
    assert back.isfinite().all()
    e = torch.ldexp(torch.randn(N), torch.randint(-44, 20, (N,)))
    found = eager.stored({"displacement": e}, random)
    assert torch.equal(found["displacement"], reference.stored_displacement(e, random))


PUBLISHED = """
    0 00000000 00000000 3f800000 00 00
    1 ffffffff 00000001 bf800000 01 fe
    2 88f418ef 3f800000 3f666666 c8 5e
    3 619e537d 3f333333 bf4ccccd c3 df
    4 00000000 37fba882 38d1b717 4f 31
    5 ffffffff 2b8cbccc b4a10fb0 01 96
    6 88f418ef 42f6e979 c0f00000 ff db
    7 619e537d 3a83126f 3a83126f 78 38
"""


def test_published_codes() -> None:
    """Random word, v, m -> codes of v and m; the other 24 of the block are 0, its exponent 102."""
    rows = [[int(word, 16) for word in line.split()] for line in PUBLISHED.strip().split("\n")]
    _, word, v, m, *expected = torch.tensor(rows).T
    v, m = (x.to(torch.int32).view(torch.float32) for x in (v, m))
    pad = torch.zeros(24)
    new = {"exp_avg_sq": torch.cat([v, pad]), "exp_avg": torch.cat([m, pad]), "displacement": pad}
    found = eager.stored({**new, "displacement": torch.zeros(32)}, torch.cat([word, pad.long()]))
    assert found["exponents"].tolist() == [102]
    for name, codes in zip(("exp_avg_sq", "exp_avg"), expected, strict=True):
        assert found[name][:8].tolist() == codes.tolist()
        assert not found[name][8:].any()


def test_codes_stay_what_they_are() -> None:
    """Whatever the random bits: what a format has is stored as it is."""
    _, v = kept(second_moments(), words(N))
    m = v.sqrt() * torch.randn(N).clamp(-3, 3)
    first = eager.stored({"exp_avg": m, "exp_avg_sq": v, "displacement": v}, words(N))
    m = eight_bits.exp_avg_of(first["exp_avg"], v)
    for random in (words(N, 1), torch.zeros(N).long(), torch.full((N,), 2**32 - 1)):
        e = first["displacement"].float()
        again = eager.stored({"exp_avg": m, "exp_avg_sq": v, "displacement": e}, random)
        assert all(torch.equal(again[name], first[name]) for name in first)
        y = whole(*eager.parts(m, words(N)))
        assert torch.equal(whole(*eager.parts(y, random)).view(torch.int32), y.view(torch.int32))
    # and to the nearest
    codes, exponents = eight_bits.exp_avg_sq_codes(v, eight_bits.HALF_OF_MOMENT)
    assert torch.equal(codes, first["exp_avg_sq"])
    assert torch.equal(exponents, first["exponents"])
    nearest = eight_bits.exp_avg_codes(m, v, eight_bits.HALF_OF_MOMENT)
    assert torch.equal(nearest, first["exp_avg"])


def test_only_zero_is_zero() -> None:
    v = second_moments()
    for random in (words(N), torch.zeros(N).long()):
        found, stored = kept(v, random)
        assert torch.equal(found["exp_avg_sq"] == 0, v == 0)
        assert torch.equal(stored == 0, v == 0)
        assert stored.isfinite().all()


@pytest.mark.parametrize("value", [1.2345, -3.1e-3, 2.3e-5, 7e-7, -2.1e-8, 0.19])
def test_rounding_by_chance_has_no_bias(value: float) -> None:
    n = 1 << 18
    random, x = words(n), torch.full((n,), value)
    size = x.abs()
    found = eager.stored({"exp_avg": x, "exp_avg_sq": size, "displacement": x}, random)
    v = eight_bits.exp_avg_sq_of(found["exp_avg_sq"], found["exponents"])
    one = torch.ones(n)
    m = eager.stored({"exp_avg": x, "exp_avg_sq": one, "displacement": x}, random)["exp_avg"]
    cases = [
        (found["displacement"], 11, x, 2**-24),
        (v, 10, size, 0),
        (eight_bits.exp_avg_of(m, one), 6, x, 2**-14),
        (whole(*eager.parts(x, random)), 9, x, 0),
    ]
    for stored, random_bits, of, least in cases:
        exact, numbers = of[0].double(), stored.double()
        assert 1 <= len(numbers.unique()) <= 2
        place = max(float(numbers.max() - numbers.min()), least)
        error = abs(float(numbers.mean() - exact))
        assert error <= 4 * float(numbers.std()) / n**0.5 + place / 2**random_bits


def test_24_bits_of_y() -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (1 << 20,), generator=generator)
    ties = (torch.arange(-(2**15), 2**15) << 16) + 0x8000
    y = torch.cat([patterns, ties, ties - 1, ties + 1]).to(torch.int32).view(torch.float32)
    y = y[y.abs() < 3.38e38]
    random = words(len(y))
    high, low = eager.parts(y, random)
    assert_same_bits([high, low], list(reference.parts_of_y(y, random)))
    back = whole(high, low)
    assert torch.equal(bits(back), bits(reference.y_of_parts(high, low)))
    # less than one place of 24 bits away, and to the nearest at most half of one
    away = (back.view(torch.int32).long() - y.view(torch.int32).long()).abs()
    assert away.max() < 256
    nearest = whole(*eager.parts(y, None))
    assert (nearest.view(torch.int32).long() - y.view(torch.int32).long()).abs().max() <= 128
    for special in (math.inf, -math.inf):
        x = torch.tensor([special])
        assert torch.equal(whole(*eager.parts(x, torch.tensor([255]))), x)
    assert whole(*eager.parts(torch.tensor([math.nan]), torch.tensor([255]))).isnan()
