"""What the finished points say: a table, and the charts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no window

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Result = dict[str, Any]
COLOURS = {
    "adamw": "tab:orange",
    "adamw-schedulefree": "tab:green",
    "schedule-free-plus": "tab:blue",
    "schedule-free-plus, capped": "tab:cyan",
}
LABELS = {
    "adamw": "AdamW, {}: a run for each length",
    "adamw-schedulefree": "AdamWScheduleFree: one run",
    "schedule-free-plus": "ScheduleFree+: one run",
    "schedule-free-plus, capped": "ScheduleFree+ with max_lr: one run",
}
STYLES = {"linear": "o-", "wsd": "s--", "cosine": "^:", None: "o-"}
Kind = tuple[str, str | None]


def load(folder: Path) -> list[Result]:
    """All results, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def losses(result: Result) -> dict[int, float]:
    """Validation loss by tokens per parameter; nothing of a run that diverged."""
    if result["diverged"]:
        return {}
    return {e["tokens_per_parameter"]: e["validation_loss"] for e in result["evaluations"]}


def kinds(results: list[Result]) -> dict[Kind, list[Result]]:
    """The runs of each optimizer and schedule; with a cap on gamma it is another optimizer."""
    found: dict[Kind, list[Result]] = {}
    for result in results:
        point = result["point"]
        capped = ", capped" if "max_lr" in point["settings"] else ""
        found.setdefault((point["optimizer"] + capped, point["schedule"]), []).append(result)
    return found


def best(runs: list[Result], length: int) -> Result | None:
    """The run with the lowest loss at that length."""
    done = [run for run in runs if length in losses(run)]
    return min(done, key=lambda run: losses(run)[length], default=None)


def rows(results: list[Result]) -> list[tuple[str, ...]]:
    """For each model, batch, optimizer and length: how many settings were tried, the best, and its seeds."""
    lines = []
    for model, batch in sorted({(r["point"]["model"], r["point"]["batch"]) for r in results}):
        here = [r for r in results if (r["point"]["model"], r["point"]["batch"]) == (model, batch)]
        lengths = sorted({r["point"]["length"] for r in here})
        for (optimizer, schedule), runs in kinds(here).items():
            first = [run for run in runs if run["point"]["seed"] == 0]
            for length in lengths:
                found = best(first, length)
                if found is None:
                    continue
                settings = found["point"]["settings"]
                same = [
                    r for r in runs if r["point"]["settings"] == settings and length in losses(r)
                ]
                # a Schedule-Free run is read off at every length that it passes
                tried = [r for r in first if reaches(r, length)]
                values = {r["point"]["seed"]: losses(r)[length] for r in same}
                lines.append(
                    (
                        model,
                        str(batch),
                        f"{optimizer} {schedule or ''}".strip(),
                        str(length),
                        str(len({json.dumps(r["point"]["settings"]) for r in tried})),
                        ", ".join(f"{value:.3f}" for _, value in sorted(values.items())),
                        " ".join(f"{key}={value:g}" for key, value in settings.items()),
                    )
                )
    return lines


def reaches(result: Result, length: int) -> bool:
    """Whether the run was one for this length, or passes it."""
    point = result["point"]
    return point["length"] == length or (point["schedule"] is None and point["length"] > length)


def draw(results: list[Result], path: Path) -> None:
    """The frontier of loss against tokens, and how wide the valley of the learning rate is."""
    figure, (frontier, valley) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    first = [r for r in results if (r["point"]["model"], r["point"]["batch"]) == ("31k", 1)]
    draw_frontier(frontier, first)
    draw_valley(valley, first, 100)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_frontier(axes: Axes, results: list[Result]) -> None:
    """One line a kind: AdamW's joins runs, a Schedule-Free line is one run, the longest and best."""
    for (optimizer, schedule), runs in kinds(results).items():
        seed = [run for run in runs if run["point"]["seed"] == 0]
        if schedule is None:
            length = max(run["point"]["length"] for run in seed)
            found = best([run for run in seed if run["point"]["length"] == length], length)
            values = losses(found) if found else {}
        else:
            lengths = sorted({run["point"]["length"] for run in seed})
            chosen = {t: best(seed, t) for t in lengths}
            values = {t: losses(run)[t] for t, run in chosen.items() if run}
        label = LABELS[optimizer].format(schedule)
        axes.semilogx(
            list(values),
            list(values.values()),
            STYLES[schedule],
            color=COLOURS[optimizer],
            label=label,
        )
    axes.set(
        xlabel="bytes per parameter",
        ylabel="validation loss (nats per byte)",
        title="Loss against length, each AdamW point a run of its own",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")


def draw_valley(axes: Axes, results: list[Result], length: int) -> None:
    """Runs that differ in the learning rate alone from the best of their kind."""
    for (optimizer, schedule), runs in kinds(results).items():
        seed = [r for r in runs if r["point"]["seed"] == 0 and r["point"]["length"] == length]
        found: dict[str, list[tuple[float, float]]] = {}
        for run in filter(losses, seed):
            settings = {k: v for k, v in run["point"]["settings"].items() if k != "lr"}
            key = json.dumps(settings, sort_keys=True)
            found.setdefault(key, []).append((run["point"]["settings"]["lr"], losses(run)[length]))
        longest = max(
            found.values(), key=lambda v: (len(v), -min(loss for _, loss in v)), default=[]
        )
        if len(longest) > 1:
            rates, values = zip(*sorted(longest), strict=True)
            label = f"{optimizer} {schedule or ''}"
            axes.semilogx(rates, values, STYLES[schedule], color=COLOURS[optimizer], label=label)
    axes.set(
        xlabel="lr (for ScheduleFree+ a factor on the Polyak step)",
        ylabel="validation loss (nats per byte)",
        title=f"How wide the valley is, at {length} bytes per parameter",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
