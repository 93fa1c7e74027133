"""The scheduler classes: the functions' factors, torch's own where they coincide, runs that are resumed."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from sfplus_kernels import SGDScheduleFree, schedules
from sfplus_kernels.schedules import (
    CosineLR,
    InverseSqrtLR,
    LinearDecayLR,
    RefinedLR,
    WarmupStableDecayLR,
)

FACTORS = schedules.refine([4.0, 3.0, 2.0, 2.0, 2.0, 3.0])
Make = Callable[..., LRScheduler]
PAIRS: dict[str, tuple[Make, Callable[..., float]]] = {
    "linear_decay": (
        partial(LinearDecayLR, total_steps=20, warmup_steps=4, end_factor=0.1),
        partial(schedules.linear_decay, total_steps=20, warmup_steps=4, end_factor=0.1),
    ),
    "cosine": (
        partial(CosineLR, total_steps=20, warmup_steps=4, end_factor=0.1),
        partial(schedules.cosine, total_steps=20, warmup_steps=4, end_factor=0.1),
    ),
    "1-sqrt": (
        partial(WarmupStableDecayLR, total_steps=20, cooldown_steps=6, warmup_steps=4),
        partial(schedules.warmup_stable_decay, total_steps=20, cooldown_steps=6, warmup_steps=4),
    ),
    "linear": (
        partial(
            WarmupStableDecayLR, total_steps=20, cooldown_steps=6, cooldown="linear", end_factor=0.1
        ),
        partial(
            schedules.warmup_stable_decay,
            total_steps=20,
            cooldown_steps=6,
            cooldown="linear",
            end_factor=0.1,
        ),
    ),
    "inverse_sqrt": (
        partial(InverseSqrtLR, warmup_steps=4, timescale=7),
        partial(schedules.inverse_sqrt, warmup_steps=4, timescale=7),
    ),
    "refined": (
        partial(RefinedLR, factors=FACTORS, total_steps=20, warmup_steps=4),
        partial(schedules.refined, factors=FACTORS, total_steps=20, warmup_steps=4),
    ),
}
MAKES = {name: make for name, (make, _) in PAIRS.items()}
each = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def optimizer_with(*rates: Any, kind: type[Optimizer] = SGD) -> Optimizer:
    """One group for each rate."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in rates]
    return kind(groups)  # type: ignore[call-arg]


def rates_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def run(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """The rates with which each step was taken."""
    taken = []
    for _ in range(steps):
        taken.append(rates_of(optimizer))
        optimizer.step()
        scheduler.step()
    return taken


@pytest.mark.parametrize(("make", "function"), PAIRS.values(), ids=PAIRS)
def test_every_group_takes_its_lr_times_the_factor(make: Make, function: Callable) -> None:
    optimizer = optimizer_with(0.3, 2.0)
    scheduler = make(optimizer)
    assert isinstance(scheduler, LRScheduler)
    assert run(optimizer, scheduler, 25) == [
        [0.3 * function(k), 2.0 * function(k)] for k in range(25)
    ]
    assert scheduler.get_last_lr() == rates_of(optimizer)


WARMUP_FIRST = partial(LinearLR, start_factor=1 / 8, total_iters=7)
SAME: dict[str, tuple[Make, Make]] = {
    "linear": (
        partial(LinearDecayLR, total_steps=30),
        partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=30),
    ),
    "linear to a tenth": (
        partial(LinearDecayLR, total_steps=30, end_factor=0.1),
        partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=30),
    ),
    "cosine": (partial(CosineLR, total_steps=30), partial(CosineAnnealingLR, T_max=30)),
    "cosine to a tenth": (
        partial(CosineLR, total_steps=30, end_factor=0.1),
        partial(CosineAnnealingLR, T_max=30, eta_min=0.03),
    ),
    "constant after a warmup": (
        partial(WarmupStableDecayLR, total_steps=40, warmup_steps=8, cooldown_steps=10),
        WARMUP_FIRST,
    ),
    "refined from constant norms": (
        partial(RefinedLR, factors=schedules.refine([5.0] * 31), total_steps=30),
        partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=30),
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), SAME.values(), ids=SAME)
def test_same_as_torchs(ours: Make, theirs: Make) -> None:
    first, second = optimizer_with(0.3), optimizer_with(0.3)
    found = run(first, ours(first), 30)
    expected = run(second, theirs(second), 30)
    for k in range(30):
        assert found[k] == pytest.approx(expected[k], rel=1e-12, abs=1e-15), k


@each
def test_resumed_in_the_middle(make: Make) -> None:
    straight = optimizer_with(0.3, 2.0, kind=AdamW)
    expected = run(straight, make(straight), 20)

    saved = optimizer_with(0.3, 2.0, kind=AdamW)
    scheduler = make(saved)
    run(saved, scheduler, 7)
    state = copy.deepcopy((saved.state_dict(), scheduler.state_dict()))

    resumed = optimizer_with(0.3, 2.0, kind=AdamW)
    scheduler = make(resumed)
    resumed.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    assert scheduler.get_last_lr() == expected[7]
    assert run(resumed, scheduler, 13) == expected[7:]


@each
def test_resumed_by_last_epoch(make: Make) -> None:
    straight = optimizer_with(0.3, 2.0)
    expected = run(straight, make(straight), 20)
    saved = optimizer_with(0.3, 2.0)
    run(saved, make(saved), 7)
    resumed = optimizer_with(0.3, 2.0)
    resumed.load_state_dict(saved.state_dict())
    assert run(resumed, make(resumed, last_epoch=6), 13) == expected[7:]


@each
def test_pickled(make: Make) -> None:
    optimizer = optimizer_with(0.3)
    scheduler = make(optimizer)
    run(optimizer, scheduler, 5)
    other = pickle.loads(pickle.dumps(scheduler))
    assert other.optimizer is not optimizer
    for _ in range(10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: the step of a copied optimizer is not tracked
            other.step()
        optimizer.step()
        scheduler.step()
        assert other.get_last_lr() == scheduler.get_last_lr() == rates_of(other.optimizer)


@each
def test_a_state_is_small_and_can_be_saved_as_weights(make: Make, tmp_path: Any) -> None:
    optimizer = optimizer_with(0.3)
    scheduler = make(optimizer)
    run(optimizer, scheduler, 5)
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == scheduler.state_dict()
    assert set(state) == {"last_epoch", "base_lrs", "_last_lr", "_step_count"}


@each
def test_a_tensor_lr_is_filled_and_stays_the_same_tensor(make: Make) -> None:
    lr = torch.tensor(0.25, dtype=torch.float64)
    optimizer = AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr, foreach=False)
    scheduler = make(optimizer)
    plain = optimizer_with(0.25)
    expected = run(plain, make(plain), 20)
    assert run(optimizer, scheduler, 20) == expected
    assert optimizer.param_groups[0]["lr"] is lr


def test_the_cooldown_may_be_decided_later() -> None:
    """The state says where the run is, and the arguments what the schedule is."""
    optimizer = optimizer_with(1.0)
    scheduler = WarmupStableDecayLR(optimizer, 1000, cooldown_steps=100)
    run(optimizer, scheduler, 50)
    branch = optimizer_with(1.0)
    shorter = WarmupStableDecayLR(branch, 60, cooldown_steps=10, cooldown="linear")
    branch.load_state_dict(optimizer.state_dict())
    shorter.load_state_dict(scheduler.state_dict())
    found = [rate for (rate,) in run(branch, shorter, 10)]
    assert found == pytest.approx([1 - k / 10 for k in range(10)], rel=1e-15)


def test_the_state_of_torchs_own_is_taken() -> None:
    optimizer = optimizer_with(0.3)
    theirs = LambdaLR(optimizer, lambda step: 1.0)
    run(optimizer, theirs, 5)
    scheduler = CosineLR(optimizer, 20)
    scheduler.load_state_dict(theirs.state_dict())
    optimizer.step()
    scheduler.step()
    assert rates_of(optimizer) == [0.3 * schedules.cosine(6, 20)]


def test_states_that_do_not_fit() -> None:
    scheduler = CosineLR(optimizer_with(0.3), 20)
    before = scheduler.state_dict()
    with pytest.raises(
        ValueError, match="has no base_lrs, _last_lr, _step_count; .* it has last_epoch"
    ):
        scheduler.load_state_dict({"last_epoch": 3})
    other = CosineLR(optimizer_with(0.3, 0.1), 20)
    with pytest.raises(ValueError, match="has 2 groups, the optimizer has 1"):
        scheduler.load_state_dict(other.state_dict())
    assert scheduler.state_dict() == before


def test_after_one_of_torchs() -> None:
    optimizer = optimizer_with(0.3)
    first = ConstantLR(optimizer, factor=0.5, total_iters=3)
    both = SequentialLR(optimizer, [first, LinearDecayLR(optimizer, 10)], milestones=[3])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch's SequentialLR calls step(0), which torch deprecates
        found = [rate for (rate,) in run(optimizer, both, 13)]
    expected = [0.15] * 3 + [0.3 * (1 - k / 10) for k in range(10)]
    assert found == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(LinearDecayLR, total_steps=0), "total_steps=0"),
        (partial(CosineLR, total_steps=5, warmup_steps=5), "warmup_steps=5"),
        (partial(WarmupStableDecayLR, total_steps=5, cooldown_steps=6), "cooldown_steps=6"),
        (partial(InverseSqrtLR, timescale=0), "timescale=0"),
        (partial(RefinedLR, factors=[1.0], total_steps=5), "1 factors"),
        (partial(RefinedLR, factors=[1.0, math.nan], total_steps=5), "factor 1 of 2 is nan"),
        (partial(RefinedLR, factors=[-1.0, 0.0], total_steps=5), "factor 0 of 2 is -1.0"),
    ],
)
def test_a_bad_argument_leaves_the_optimizer_as_it_was(make: Make, message: str) -> None:
    optimizer = optimizer_with(0.3)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        make(optimizer)
    assert optimizer.state_dict() == before


def test_a_schedule_free_optimizer_says_that_it_wants_none() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = SGDScheduleFree([weight], lr=0.1)
    optimizer.train()
    scheduler = LinearDecayLR(optimizer, 10)
    weight.grad = torch.ones(2)
    optimizer.step()
    scheduler.step()
    with pytest.warns(UserWarning, match="lr was lowered from 0.1 to 0.09"):
        optimizer.step()
