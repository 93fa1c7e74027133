"""What a million steps make of each ``state_format``: ``python -m bench.long_average FORMAT``.

Without a format: the table of what was found.

A displacement is a sum over the whole run, and forgets no rounding. A short run shows nothing of it: kept as
numbers of 8 bits it looks well for hundreds of steps, and is hundreds of times too far off at a million.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from sfplus_kernels import AdamWScheduleFree

SIDE = 64
CASES = {0.95: 2e-3, 0.999: 5e-4}
"""beta2 -> lr."""
LOOKS = (10_000, 100_000, 300_000, 1_000_000)
RESULTS = Path(__file__).parent / "results" / "long_average.jsonl"


def excess_losses(
    state_format: str, beta2: float, seed: int, looks: tuple[int, ...] = LOOKS
) -> Iterator[tuple[int, float]]:
    """(steps, loss of x above the least there is) at the ``looks``.

    On a quadratic with curvatures from 0.01 to 1, whose gradients have noise of size 1.
    """
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.logspace(-2, 0, SIDE * SIDE).view(SIDE, SIDE)
    best = torch.randn(SIDE, SIDE, generator=generator)
    p = torch.nn.Parameter(torch.zeros(SIDE, SIDE))
    optimizer = AdamWScheduleFree(
        [p],
        lr=CASES[beta2],
        betas=(0.9, beta2),
        inner_momentum=0.9,
        weight_lr_power=0,
        backend="cpu",
        state_format=state_format,
        rounding_seed=seed,
    )
    optimizer.train()
    p.grad = torch.empty_like(p)
    noise = torch.empty(100, SIDE, SIDE)
    with torch.no_grad():
        for k in range(max(looks)):
            if k % 100 == 0:
                noise.normal_(generator=generator)
            torch.addcmul(noise[k % 100], curvature, p - best, out=p.grad)
            optimizer.step()
            if k + 1 in looks:
                x = optimizer.iterates(p).x.double()
                yield k + 1, float((0.5 * curvature * (x - best).square()).mean())


def ratios(rows: Iterable[dict[str, Any]]) -> dict[tuple[float, str], dict[int, float]]:
    """(beta2, format) -> steps -> excess loss as a multiple of float32's, over the seeds that both have."""
    losses = {
        (row["beta2"], row["state_format"], row["steps"], row["seed"]): row["excess_loss"]
        for row in rows
    }
    sums: dict[tuple[float, str], dict[int, tuple[float, float]]] = {}
    for (beta2, state_format, steps, seed), loss in sorted(losses.items()):
        base = losses.get((beta2, "float32", steps, seed))
        if state_format != "float32" and base is not None:
            of_format = sums.setdefault((beta2, state_format), {})
            before = of_format.get(steps, (0.0, 0.0))
            of_format[steps] = before[0] + loss, before[1] + base
    return {
        case: {steps: loss / base for steps, (loss, base) in found.items()}
        for case, found in sums.items()
    }


def read(results: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in results.read_text().splitlines()]


def main() -> None:
    """One process, one thread: add the rows of one format to the results, case by case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state_format", nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--beta2", type=float, nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.state_format is None:
        for (beta2, state_format), found in ratios(read(arguments.results)).items():
            told = ", ".join(f"{steps:,} steps: {ratio:.4f}" for steps, ratio in found.items())
            print(f"beta2 {beta2}, {state_format}, times float32's excess loss: {told}")
        return
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for beta2 in arguments.beta2:
            start = time.perf_counter()
            for steps, loss in excess_losses(arguments.state_format, beta2, seed):
                row = {
                    "state_format": arguments.state_format,
                    "beta2": beta2,
                    "seed": seed,
                    "steps": steps,
                    "excess_loss": loss,
                }
                with arguments.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
