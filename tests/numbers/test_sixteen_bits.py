"""State in 16 bits: each buffer against reference/state_formats.py, and steps against float64."""

import math
from typing import Any

import pytest
import torch
from support import BACKENDS, bits, device_of, make_params, run, steps_for
from support.rounded_state import a_step_beside_float64, on_threads
from torch import Tensor

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, SGDScheduleFree
from sfplus_kernels.backends import sixteen_bits
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.formats import halves, whole
from sfplus_kernels.contract.layout import Scalar, Setting
from sfplus_kernels.reference import state_formats as reference

PUBLISHED = {  # (seed, tensor, step, index) -> 32 bits
    (0, 0, 1, 0): 0x88F418EF,
    (0, 0, 1, 1): 0x619E537D,
    (0, 0, 2, 0): 0xDEA9DABF,
    (0, 1, 1, 0): 0xBEA9B075,
    (1, 0, 1, 0): 0x0EE4B9AF,
    (3, 7, 1000, 123456): 0xFF21F13B,
    (4294967295, 12, 99999, 4294967295): 0xF7764D9D,
    (5, 2, 17, (1 << 32) + 9): 0x82C9BA76,
    (42, 300, 123456789, 77): 0xA3AA962A,
    (7, 0, 1, 0): 0x7E9FE518,
    (0, 5000, 1, 5): 0x0C41867A,
    (2147483648, 3, 2147483655, 2147483648): 0x9E527188,
    (9, 1, 4294967295, 4096): 0x0EF12BB1,
    (123456789, 77, 100000, 8589934593): 0x2AB18BF5,
    (1, 1, 1, 4294967296): 0x43EBDE3D,
    (4294967295, 4095, 1, 31): 0x6711C965,
}
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 65504.0, 65519.0, 1e30, 1e-40, 2**-14, 2**-24]


def anything(n: int, seed: int = 0) -> Tensor:
    """float32 numbers of all sizes, and the special ones."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-44, 20, (n,), generator=generator)
    numbers = torch.ldexp(torch.randn(n, generator=generator), exponents)
    return torch.cat([torch.tensor(SPECIAL), numbers])


def words(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**32, (n,), generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but for the payload of a NaN."""
    return torch.equal(
        bits(a.nan_to_num(7, math.inf, -math.inf)), bits(b.nan_to_num(7, math.inf, -math.inf))
    )


@pytest.mark.parametrize(("of", "expected"), PUBLISHED.items())
def test_random_words_are_the_published_ones(of: tuple[int, int, int, int], expected: int) -> None:
    seed, tensor, step, index = of
    assert reference.random_word(*of) == expected
    run = RunState.zeros(1, tensor + 1, torch.device("cpu"))
    run.settings[Setting.ROUNDING_SEED] = seed
    run.tensors[tensor, Scalar.STEP] = step
    e = torch.zeros(1, dtype=torch.float16)
    entry = Entry(torch.zeros(1), None, None, e, None, 0, tensor, None, part=(index % 2**32, 1, 0))
    assert sixteen_bits.random_words(entry, run).tolist() == [expected]


def test_random_words_follow_the_place_in_the_whole_tensor() -> None:
    run = RunState.zeros(1, 1, torch.device("cpu"))
    run.tensors[0, Scalar.STEP] = 5

    def of(shape: tuple[int, ...], part: tuple[int, int, int] | None) -> Tensor:
        e = torch.zeros(shape, dtype=torch.float16)
        entry = Entry(torch.zeros(shape), None, None, e, None, 0, 0, None, part=part)
        return sixteen_bits.random_words(entry, run)

    everything = of((6, 10), None)
    assert torch.equal(everything.flatten(), reference.random_words(0, 0, 5, 60))
    assert torch.equal(of((2, 10), (20, 20, 0)), everything[2:4])
    assert torch.equal(of((6, 3), (4, 3, 10)), everything[:, 4:7])
    assert torch.equal(of((2, 3), (24, 3, 10)), everything[2:4, 4:7])


def test_stored_numbers_are_those_of_the_reference() -> None:
    e, random = anything(1 << 17), words((1 << 17) + len(SPECIAL))
    assert same(sixteen_bits.displacement(e, random), reference.stored_displacement(e, random))
    v = e.abs()
    assert same(sixteen_bits.exp_avg_sq(v, random), reference.stored_exp_avg_sq(v, random))
    m = e.nan_to_num(0, 1, -1)
    assert same(m.to(torch.bfloat16), reference.stored_exp_avg(m))
    assert sixteen_bits.displacement(e, random)[e.isfinite()].isfinite().all()


@pytest.mark.parametrize("value", [1.2345, -3.1e-3, 2.3e-5, -7e-7, 2.1e-8, 40000.3])
def test_rounding_by_chance_has_no_bias(value: float) -> None:
    n = 1 << 18
    random = words(n)
    for stored in (
        sixteen_bits.displacement(torch.full((n,), value), random),
        sixteen_bits.exp_avg_sq(torch.full((n,), abs(value)), random),
    ):
        found = stored.double()
        expected = abs(value) if stored.dtype == torch.bfloat16 else value
        expected = float(torch.tensor(expected))  # of float32
        assert 1 <= len(found.unique()) <= 2
        # the random numbers are multiples of a 2^-13 of the last place
        place = float(found.max() - found.min()) or 1e-9
        assert (
            abs(float(found.mean()) - expected) <= 4 * float(found.std()) / n**0.5 + place / 2**13
        )
        # what the format has is never changed
        exact = stored[:1].float().expand(n)
        again = sixteen_bits.displacement if value == expected else sixteen_bits.exp_avg_sq
        if stored.dtype == (torch.float16 if value == expected else torch.bfloat16):
            assert torch.equal(again(exact, random).float(), exact)


def test_two_halves_are_y_again() -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (1 << 20,), generator=generator)
    ties = (torch.arange(-(2**15), 2**15) << 16) + 0x8000  # and all ties
    y = torch.cat([patterns, ties, ties - 1, ties + 1]).to(torch.int32).view(torch.float32)
    y = y[y.isfinite()]
    high, low = halves(y)
    assert torch.equal(whole(high, low).view(torch.int32), y.view(torch.int32))
    assert same(high, reference.halves_of_y(y)[0])
    low = low.view(torch.int16)
    assert torch.equal(low, reference.halves_of_y(y)[1])
    assert torch.equal(reference.y_of_halves(high, low).view(torch.int32), y.view(torch.int32))
    to_even = y.to(torch.bfloat16)
    assert ((high != to_even) <= (low == -0x8000)).all()  # other than that only on ties
    for special in (math.inf, -math.inf):
        assert whole(*halves(torch.tensor([special]))).item() == special
    assert whole(*halves(torch.tensor([math.nan]))).isnan()


def test_a_zero_that_was_written_is_no_nan() -> None:
    zeros = torch.tensor([0.0, -0.0], dtype=torch.bfloat16)
    for low in (-32768, -5, 0, 5, 32767):
        y = whole(zeros, torch.full((2,), low, dtype=torch.int16))
        assert torch.equal(
            y, reference.y_of_halves(zeros, torch.full((2,), low, dtype=torch.int16))
        )
        assert (y.abs() < 1e-38).all()
        assert torch.equal(y.to(torch.bfloat16), zeros)


CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plus": (AdamCScheduleFreePlus, {"lr": 0.3, "weight_decay": 2.0}),
    "adamw": (AdamWScheduleFree, {"lr": 0.02, "weight_decay": 0.1}),
    "sgd": (SGDScheduleFree, {"lr": 0.1, "weight_decay": 0.1}),
}
SHAPES = [(0,), (7,), (33, 5), (), (70, 300)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_that_of_float64_to_a_last_place(
    backend: str, name: str, dtype: torch.dtype
) -> None:
    optimizer, params, twin, twins = a_step_beside_float64(
        backend, CLASSES[name], SHAPES, dtype, "16bit", steps_for(backend, 20)
    )
    moved = 0.0
    for p, q in zip(params, twins, strict=True):
        found, expected = optimizer.state[p], twin.state[q]
        for buffer, places in (("exp_avg", 2**-8), ("exp_avg_sq", 2**-7), ("displacement", 2**-10)):
            if buffer in found:
                assert found[buffer].dtype.itemsize == 2
                value = found[buffer].double().cpu()
                error = (value - expected[buffer]).abs()
                assert (error <= 1.01 * places * expected[buffer].abs() + 2**-24).all(), buffer
                moved = max(moved, float(error.max()) if error.numel() else 0)
        y = optimizer.iterates(p).y.double().cpu()
        assert torch.allclose(y, q.detach(), rtol=2e-6, atol=2e-6)
    assert moved > 0  # it is rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "eager"])
def test_backends_round_with_the_same_random_bits(backend: str, dtype: torch.dtype) -> None:
    """But for the elements whose float32 values differ in the last bit."""
    runs = []
    for one in ("eager", backend):
        params = make_params(SHAPES, dtype, device_of(one))
        optimizer = AdamCScheduleFreePlus(
            params, lr=0.3, backend=one, state_format="16bit", rounding_seed=11
        )
        run(optimizer, params, 2)
        runs.append([optimizer.state[p] for p in params])
    equal = total = 0
    for a, b in zip(*runs, strict=True):
        for name in ("displacement", "exp_avg_sq", "exp_avg"):
            equal += int((a[name].cpu() == b[name].cpu()).sum())
            total += a[name].numel()
    assert equal / total > 0.99


def test_each_seed_rounds_otherwise() -> None:
    runs = []
    for seed in (0, 0, 1):
        params = make_params(SHAPES, torch.float32)
        optimizer = AdamWScheduleFree(params, state_format="16bit", rounding_seed=seed)
        run(optimizer, params, 3)
        runs.append(optimizer.state[params[-1]]["displacement"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_make_no_difference(dtype: torch.dtype) -> None:
    shapes = [(300, 400), (77, 1001)]
    one, two, five = (
        on_threads(n, AdamCScheduleFreePlus, shapes, dtype, lr=0.3, state_format="16bit")
        for n in (1, 2, 5)
    )
    assert all(map(torch.equal, one, two))
    assert all(map(torch.equal, one, five))
