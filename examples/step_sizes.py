"""Which gamma is healthy: learning rates of ScheduleFree+ and of AdamW on small problems of eight kinds.

    python examples/step_sizes.py             # all of it, about 15 minutes on one core
    python examples/step_sizes.py --case mlp
    python examples/step_sizes.py --resume    # only what is not in the file yet

Each line of step_size_results.jsonl is one run: the learning rate, the gamma that came of it, and the loss
at the end.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import extras  # noqa: F401 ends the program if something is missing
import torch
import typer
from step_size_parts.cases import CASES, Case

from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree

RESULTS = Path(__file__).with_name("step_size_results.jsonl")
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # ScheduleFree+'s lr
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # the others'
CAPS = (0.003, 0.01, 0.03, 0.1)  # ScheduleFree+'s max_lr at lr=1
LOOK_EVERY = 8  # steps, at how far z is from x
# Where the best rate was the largest, until it no longer is.
LARGER = {
    "quadratic": (0.3, 1.0, 3.0, 10.0),
    "regression": (0.3,),
    "frozen backbone": (0.3, 1.0, 3.0, 10.0),
    "mlp": (0.3,),
}


def grid(case: str) -> list[tuple[str, float, float | None]]:
    """Optimizer, lr and max_lr of each run."""
    larger = LARGER.get(case, ())
    kinds = ("adamw-schedulefree", "adamw")
    return [
        *(("schedule-free-plus", lr, None) for lr in FACTORS),
        *(("schedule-free-plus", 1.0, cap) for cap in CAPS + larger),
        *((kind, lr, None) for kind in kinds for lr in RATES + larger),
    ]


def train(case: Case, kind: str, lr: float, cap: float | None = None) -> dict[str, Any]:
    """One run, with its curve of gamma."""
    warmup = case.steps // 10
    optimizer: torch.optim.Optimizer
    if kind == "schedule-free-plus":
        optimizer = AdamCScheduleFreePlus(
            case.parameters(), lr=lr, max_lr=cap, warmup_steps=warmup, c_warmup=2 * warmup
        )
        optimizer.train()
    elif kind == "adamw-schedulefree":
        optimizer = AdamWScheduleFree(case.parameters(), lr=lr, warmup_steps=warmup)
        optimizer.train()
    else:
        optimizer = torch.optim.AdamW(case.parameters(), lr=lr)
    gammas, losses, capped, farthest = [], [], 0.0, 0.0
    for k in range(case.steps):
        loss = case.loss(k)
        loss.backward()
        if kind == "schedule-free-plus":
            optimizer.step(loss=loss.detach())
            figures = optimizer.metrics()
            gammas.append(figures["scheduled_lr"][0])
            capped += figures["capped"][0] / case.steps
            if k >= 2 * warmup and k % LOOK_EVERY == 0:
                farthest = max(farthest, away(optimizer, case))
        elif kind == "adamw":
            factor = min((k + 1) / warmup, (case.steps - k) / (case.steps - warmup))
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
        else:
            optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    with torch.no_grad(), optimizer.averaged() if kind != "adamw" else nullcontext():
        final = float(case.evaluate())
    found = {"lr": lr, "loss": final, "first_loss": losses[0], "gammas": gammas}
    if kind == "schedule-free-plus":
        found["farthest"] = farthest
    return found if cap is None else {"max_lr": cap, "capped": capped, **found}


def away(optimizer: AdamCScheduleFreePlus, case: Case) -> float:
    """How far z is from x, in units of the norm of y."""
    found = [optimizer.iterates(p) for p in case.parameters()]
    distance = sum(float((z - x).square().sum()) for x, _, z in found)
    return math.sqrt(distance / sum(float(y.square().sum()) for _, y, _ in found))


def summary(result: dict[str, Any], steps: int) -> dict[str, Any]:
    """What is kept of a run."""
    gammas = result.pop("gammas")
    line = {key: float(f"{value:.5g}") for key, value in result.items()}
    if gammas:
        warm = sorted(gammas[steps // 10 : steps // 5])
        late = sorted(gammas[-steps // 5 :])
        line |= {
            "gamma_first": gammas[0] * (steps // 10),  # without the warmup's factor
            "gamma_after_warmup": warm[len(warm) // 2],
            "gamma_late": late[len(late) // 2],
            "gamma_max": max(gammas),
            "zeros": sum(g == 0 for g in gammas),
        }
        line = {k: float(f"{v:.4g}") for k, v in line.items()}
    return line


def known(results: Path) -> set[tuple[Any, ...]]:
    """What the file has: case, seed, optimizer, lr and max_lr of each of its runs."""
    lines = map(json.loads, results.read_text().splitlines()) if results.exists() else ()
    return {(r["case"], r["seed"], r["optimizer"], r["lr"], r.get("max_lr")) for r in lines}


def main(
    case: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given several times.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    results: Annotated[Path, typer.Option(help="Lines are added to this file.")] = RESULTS,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only what the file does not have.")
    ] = False,
) -> None:
    """Scan learning rates of three optimizers on problems of eight kinds."""
    torch.set_num_threads(1)
    done = known(results) if resume else set()
    for name in case or CASES:
        for seed in range(seeds):
            for kind, lr, cap in grid(name):
                if (name, seed, kind, lr, cap) in done:
                    continue
                problem = CASES[name](seed)
                line = {"case": name, "optimizer": kind, "seed": seed, "steps": problem.steps}
                line["parameters"] = sum(p.numel() for p in problem.parameters())
                line |= summary(train(problem, kind, lr, cap), problem.steps)
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                typer.echo(json.dumps(line))


if __name__ == "__main__":
    typer.run(main)
