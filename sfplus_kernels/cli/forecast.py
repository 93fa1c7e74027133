"""``python -m sfplus_kernels forecast FILE``: the loss at a later step, from the curve of a run."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Print a forecast, or why there is none (exit status 1)."""
    given = parser().parse_args(arguments)
    try:
        print(forecast(given))
    except (ValueError, ModuleNotFoundError) as error:
        sys.exit(f"No forecast: {error}")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="python -m sfplus_kernels forecast",
        description="Fit a / sqrt(t + b) + c to the training loss of a run without a schedule, and say "
        "where it goes.",
    )
    result.add_argument(
        "file",
        type=Path,
        help=".jsonl, .csv, a Trainer's trainer_state.json, or a TensorBoard folder",
    )
    result.add_argument(
        "--at",
        type=float,
        action="append",
        default=[],
        metavar="STEP",
        help="the loss at this step",
    )
    result.add_argument(
        "--for",
        dest="target",
        type=float,
        action="append",
        default=[],
        metavar="LOSS",
        help="the steps until this loss",
    )
    for column in ("step", "loss", "rate"):
        result.add_argument(f"--{column}", metavar="NAME", help=f"the column of the {column}")
    result.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only lines with this value, for a file with several runs",
    )
    result.add_argument(
        "--burn-in",
        type=float,
        metavar="SHARE",
        help="leave out this share at the beginning, and fit whatever is left",
    )
    result.add_argument(
        "--floor", type=float, default=0.0, help="what the loss cannot be below (default: 0)"
    )
    result.add_argument("--png", type=Path, metavar="PATH", help="draw it into this file, too")
    return result


def forecast(given: argparse.Namespace) -> str:
    """What the command prints."""
    # The extra is needed here, not for --help.
    from sfplus_kernels.forecast import fit, read
    from sfplus_kernels.forecast.fitting import LEVEL
    from sfplus_kernels.forecast.picture import png, text

    unclear = [pair for pair in given.where if "=" not in pair]
    if unclear:
        raise ValueError(f"--where {unclear[0]}; expected KEY=VALUE")
    where = dict(pair.split("=", 1) for pair in given.where)
    curve = read(given.file, step=given.step, loss=given.loss, rate=given.rate, where=where)
    found = fit(curve, burn_in=given.burn_in, floor=given.floor)
    last = float(curve.step[-1])
    if any(not 0 < step < math.inf for step in given.at):
        raise ValueError(f"--at {given.at}; expected positive numbers of steps")
    steps = given.at or [2 * last, 4 * last, 10 * last]
    until = max(*steps, 1.2 * last)
    curve_line = f"loss(t) = {found.fit.a:.4g} / sqrt(t + {found.fit.b:.4g}) + {found.fit.c:.4g}"
    lines = [
        text(found, until),
        "",
        curve_line,
        f"fitted to {len(found.fit.step)} means of {found.fit.per_bin} of the {len(curve.step)} points "
        "each, after "
        f"the first {found.fit.burn_in:.0%} of the run",
    ]
    for step in steps:
        low, high = found.interval(step)
        lines.append(
            f"at step {step:,.0f}: {found.at(step):.4f}   ({LEVEL:.0%}: {low:.4f} to {high:.4f})"
        )
    for loss in given.target:
        expected, earliest, latest = (described(step) for step in found.steps_for(loss))
        lines.append(f"loss {loss:g} at step {expected}   ({LEVEL:.0%}: {earliest} to {latest})")
    low, high = found.limit_interval()
    lines.append(f"it goes to c = {found.fit.c:.4f}   ({LEVEL:.0%}: {low:.4f} to {high:.4f})")
    lines.append("as an f_star take no more than the lower end: too high a one stops the training")
    if curve.rate is None:
        lines.append(
            "the file has no learning rate: was it constant? A schedule cannot be told from the loss alone"
        )
    if given.png:
        png(found, curve, until, given.png)
        lines.append(f"drawn in {given.png}")
    return "\n".join(lines)


def described(step: float) -> str:
    """A number of steps, or that it never comes."""
    return "never" if math.isinf(step) else f"{step:,.0f}"
