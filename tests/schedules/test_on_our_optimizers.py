"""torch's schedulers and ours on AdamW, AdamC and SGD of this package: the weights of torch's classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from sfplus_kernels import SGD, AdamC, AdamW
from sfplus_kernels.schedules import (
    CosineLR,
    InverseSqrtLR,
    LinearDecayLR,
    RefinedLR,
    WarmupStableDecayLR,
    refine,
)

STEPS = 12
CLASSES: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "AdamW": (AdamW, torch.optim.AdamW, {}, {}),
    "AdamC, not corrected": (AdamC, torch.optim.AdamW, {}, {"normalized": False}),
    "SGD": (SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1}, {}),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one cycle, of betas or momentum too": lambda o: lr_scheduler.OneCycleLR(
        o, 0.05, total_steps=STEPS + 1
    ),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=3),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (k + 1)),
    "one after another": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "linear decay": lambda o: LinearDecayLR(o, STEPS, warmup_steps=3),
    "cosine": lambda o: CosineLR(o, STEPS),
    "WSD": lambda o: WarmupStableDecayLR(o, STEPS, cooldown_steps=4),
    "1 / sqrt(t)": lambda o: InverseSqrtLR(o, timescale=2),
    "refined": lambda o: RefinedLR(o, refine([3.0, 2.0, 1.0, 1.0, 2.0]), STEPS),
}


def weights(make: Any, schedule: Callable[[Any], Any], **arguments: Any) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = make(model.named_parameters(), lr=0.02, **arguments)
    scheduler = schedule(optimizer)
    for k in range(STEPS):
        optimizer.zero_grad()
        (model(torch.ones(2, 4, dtype=torch.float64)) - k).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return model.weight.detach()


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("name", CLASSES)
def test_weights_are_those_of_torchs_class(name: str, schedule: Callable[[Any], Any]) -> None:
    ours, theirs, arguments, more = CLASSES[name]
    expected = weights(theirs, schedule, **arguments)
    torch.testing.assert_close(
        weights(ours, schedule, **arguments, **more), expected, rtol=1e-12, atol=1e-12
    )
    constant = weights(theirs, lambda o: lr_scheduler.ConstantLR(o, 1.0), **arguments)
    assert float((expected - constant).abs().max()) > 1e-3  # the schedule was followed


@pytest.mark.parametrize(("name", "norm"), [("AdamW", "l1"), ("SGD", "l2")])
def test_from_one_run_to_the_schedule_of_the_next(name: str, norm: Any) -> None:
    """The norms are in metrics() where a step looks at the gradients first."""
    ours, _, arguments, _ = CLASSES[name]
    key = {"l1": "grad_l1", "l2": "grad_norm"}[norm]
    kept: list[float] = []

    class Run:
        """Notes the norms as it steps."""

        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.scheduler = optimizer, LinearDecayLR(optimizer, STEPS)

        def step(self) -> None:
            figures = self.optimizer.metrics()
            kept.append(figures[key])
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
            order = 1 if norm == "l1" else 2
            assert figures[key] == pytest.approx(
                float(nn.utils.get_total_norm(gradients, norm_type=order)), rel=1e-12
            )
            self.scheduler.step()

    weights(ours, Run, skip_nonfinite=True, **arguments)
    factors = refine(kept, norm=norm)
    assert len(factors) == STEPS
    second = weights(ours, lambda o: RefinedLR(o, factors, STEPS), **arguments)
    assert bool(second.isfinite().all())
    largest = max(range(STEPS), key=factors.__getitem__)
    rates: list[float] = []

    class Noting(RefinedLR):
        def step(self, *args: Any) -> None:
            rates.append(self.optimizer.param_groups[0]["lr"])
            super().step(*args)

    weights(ours, lambda o: Noting(o, factors, STEPS), **arguments)
    assert (
        rates[1:].index(max(rates[1:])) == largest
    )  # the first call is torch's own, before any step
