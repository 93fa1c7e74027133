"""What 100,000 steps make of state in 16 bits: an average does not forget what rounding does to it."""

import pytest
import torch
from torch import Tensor

from sfplus_kernels import AdamWScheduleFree

STEPS, SIZE, SEEDS = 100_000, 1024, (0, 1)


def excess_loss(state_format: str, beta2: float, lr: float, seed: int) -> float:
    """Of x, on a quadratic with curvatures from 0.01 to 1 whose gradients have noise of size 1."""
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.logspace(-2, 0, SIZE)
    best = torch.randn(SIZE, generator=generator)
    p = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = AdamWScheduleFree(
        [p], lr=lr, betas=(0.9, beta2), weight_lr_power=0, backend="cpu", state_format=state_format
    )
    optimizer.train()
    p.grad = torch.empty_like(p)
    noise: Tensor = torch.empty(100, SIZE)
    for k in range(STEPS):
        if k % 100 == 0:
            noise.normal_(generator=generator)
        with torch.no_grad():
            torch.addcmul(noise[k % 100], curvature, p - best, out=p.grad)
        optimizer.step()
    x = optimizer.iterates(p).x.double()
    return float((0.5 * curvature * (x - best).square()).mean())


@pytest.mark.slow
@pytest.mark.parametrize(("beta2", "lr"), [(0.95, 2e-3), (0.999, 5e-4)])
def test_excess_loss_is_that_of_float32(beta2: float, lr: float) -> None:
    """With v to the nearest it would be 1.6 times as large for the larger beta2."""
    full, half = (
        sum(excess_loss(state_format, beta2, lr, seed) for seed in SEEDS)
        for state_format in ("float32", "16bit")
    )
    assert 0 < full < 1
    assert half != full
    assert half / full < 1.05
