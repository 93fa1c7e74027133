"""Plots of a run, as PNG and SVG, from its result file alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.rows import BASELINE, Row, Run
from bench.table import milliseconds

OURS, OTHERS, FLOOR = "#0072b2", "#b0b0b0", "#d55e00"
CURVES = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f4fc9", "#8c564b", "#333333")
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text, which can be read aloud and selected
    "svg.hashsalt": "bench",  # the same rows give the same file
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "figure.constrained_layout.use": True,
}


def draw(run: Run, folder: Path) -> list[Path]:
    """Every plot that the rows suffice for: the SVG files, in the order of ``PLOTS``."""
    written = []
    for name, (_, plot) in PLOTS.items():
        with mpl.rc_context(STYLE):
            figure = plot(run)
            if figure is None:
                continue
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = folder / f"{name}.{kind}"
                figure.savefig(path, dpi=160, metadata=metadata)
            written.append(path)
    return written


def roofline(run: Run) -> Figure | None:
    """The first workload: how much of the time of each step its bytes account for."""
    workloads = run.workloads("step")
    rows = (
        [r for r in run.section("step", workloads[0]) if r.name != r.ceiling] if workloads else []
    )
    return _percent_bars(rows)


def passes(run: Run) -> Figure | None:
    workloads = run.workloads("pass")
    rows = run.section("pass", workloads[0]) if workloads else []
    return _percent_bars([row for row in rows if row.traffic])


def _percent_bars(rows: list[Row]) -> Figure | None:
    if not rows:
        return None
    figure, axes = _figure(1 + 0.34 * len(rows))
    has_ratio = any(row.ratio_to_baseline is not None for row in rows)
    for position, row in enumerate(rows):
        percent = row.percent_of_roofline or 0
        axes.barh(position, percent, color=OURS if row.ours else OTHERS)
        note = f"{percent:.0f} %, {milliseconds(row.median)} ms"
        if row.ratio_to_baseline is not None:
            note += f", {row.ratio_to_baseline:.2f} x"
        # in a column of their own, right of the axes
        beside = axes.get_yaxis_transform()
        axes.text(1.02, position, note, va="center", fontsize=9, transform=beside)
    axes.axvline(100, color=FLOOR, linewidth=1.5)
    _label(axes, rows)
    axes.set_xlim(0, max(100, *(row.percent_of_roofline or 0 for row in rows)) + 5)
    axes.set_xlabel("% of roofline" + (f" (x: times {BASELINE})" if has_ratio else ""))
    return figure


def host(run: Run) -> Figure | None:
    """A step with next to nothing to compute."""
    rows = sorted(run.section("host"), key=lambda row: row.median or 0)
    if not rows:
        return None
    figure, axes = _figure(1 + 0.34 * len(rows))
    longest = max(row.p80 or 0 for row in rows) * 1e3
    for position, row in enumerate(rows):
        low, median, high = ((q or 0) * 1e3 for q in (row.p20, row.median, row.p80))
        axes.barh(position, median, color=OURS if row.ours else OTHERS)
        axes.plot([low, high], [position] * 2, color="#333333", linewidth=1)
        note = f"{milliseconds(row.median)} ms"
        axes.text(high + longest / 90, position, note, va="center", fontsize=9)
    _label(axes, rows)
    axes.set_xlim(0, longest * 1.2)
    axes.set_xlabel("ms, median; thin line: p20 to p80")
    return figure


def _label(axes: Axes, rows: list[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()


def workloads(run: Run) -> Figure | None:
    """Percent of roofline of our steps, and of the baseline, in every workload."""
    fastest = {row.name for row in run.section("size") if row.ours}
    names = list(dict.fromkeys(r.workload for r in run.section("step") if r.name in fastest))
    if not names:
        return None
    figure, axes = _figure(1.6 + 0.4 * len(names))
    colors = dict(zip(sorted(fastest), CURVES, strict=False)) | {BASELINE: "#333333"}
    for name, color in colors.items():
        found = {r.workload: r for r in run.section("step") if r.name == name}
        points = [(w, found[w].percent_of_roofline) for w in names if w in found]
        if points:
            positions = [names.index(w) for w, _ in points]
            axes.plot([v or 0 for _, v in points], positions, "o", color=color, label=name)
    axes.axvline(100, color=FLOOR, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("% of roofline")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, fontsize=9, frameon=False)
    return figure


def size(run: Run) -> Figure | None:
    return _curves(run, "size", "parameters, in one tensor", lambda row: row.n_params)


def count(run: Run) -> Figure | None:
    rows = run.section("count")
    total = f"{max(r.n_params for r in rows if r.name != r.ceiling) / 1e6:.3g} M" if rows else ""
    return _curves(run, "count", f"tensors, {total} parameters in all", lambda row: row.n_tensors)


def _curves(run: Run, section: str, xlabel: str, x: Callable[[Row], int]) -> Figure | None:
    rows = [row for row in run.section(section) if row.name != row.ceiling]
    if not rows:
        return None
    figure, axes = _figure(4.4)
    for name, color in zip(dict.fromkeys(row.name for row in rows), CURVES, strict=False):
        own = sorted((row for row in rows if row.name == name), key=x)
        at = [x(row) for row in own]
        axes.fill_between(
            at,
            [(row.p20 or 0) * 1e3 for row in own],
            [(row.p80 or 0) * 1e3 for row in own],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
        axes.plot(at, [(row.median or 0) * 1e3 for row in own], "o-", color=color, label=name, ms=4)
        floors = [row.traffic / (row.ceiling_bandwidth or 1) * 1e3 for row in own]
        axes.plot(at, floors, "--", color=color, linewidth=1)
    axes.plot([], [], "--", color="#333333", linewidth=1, label="floor: bytes over bandwidth")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("ms, median; band: p20 to p80")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, frameon=False)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height))  # without pyplot: no window, no global state
    return figure, figure.add_subplot()


PLOTS: dict[str, tuple[str, Callable[[Run], Figure | None]]] = {
    "roofline": ("One step of everything", roofline),
    "workloads": ("Our steps, in every workload", workloads),
    "passes": ("Each pass alone", passes),
    "size": ("Time against parameters", size),
    "count": ("Time against the number of tensors", count),
    "host": ("Overhead of a step", host),
}
"""Name of the file -> (heading, how it is drawn)."""
