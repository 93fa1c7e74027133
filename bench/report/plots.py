"""Plots of a run, as PNG and SVG, from its result file alone.

They are narrow, with names above the bars and not beside them, so that a phone shows their text at a size
that can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.record.rows import BASELINE, Row, Run
from bench.record.table import milliseconds

WIDTH = 4.4  # inches
INK, GRID = "#1b1f24", "#d8dee4"
"""What the report shows in the page's own colours."""
OURS, OTHERS, FLOOR = "#1f7fbf", "#a3a9b0", "#d9730d"
CURVES = ("#1f7fbf", "#12a150", "#c2569a", "#8a63d2", "#b98900", "#e5534b", "#3aa6a6", "#8c6d5a")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text, which can be read aloud and selected
    "svg.hashsalt": "bench",  # the same rows give the same file
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "figure.constrained_layout.use": True,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": GRID,
}


def draw(run: Run, folder: Path, names: Iterable[str] = ()) -> list[Path]:
    """Every plot, or those of ``names``, that the rows suffice for: the SVG files, in ``PLOTS``' order."""
    written = []
    for name in names or PLOTS:
        with mpl.rc_context(STYLE):
            figure = PLOTS[name][1](run)
            if figure is None:
                continue
            png, svg = folder / f"{name}.png", folder / f"{name}.svg"
            figure.savefig(png, dpi=160, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None}, transparent=True)
            written.append(svg)
    return written


# -- one line for each contestant -----------------------------------------------------------------------


def step(run: Run) -> Figure | None:
    """The first workload, for the README: time and counted bytes side by side."""
    kinds = {"cpu", "cuda", "reference", "upstream", "fused", "foreach", "compiled"}
    found = [row for row in _first(run, "step") if "SGD" not in row.name]
    rows = [row for row in found if row.name.split()[-1] in kinds]
    if not rows:
        return None
    figure, axes = _lines(rows)
    most = max(row.median or 0 for row in rows), max(row.bytes_per_param for row in rows)
    for at, row in _places(rows):
        _note(axes, at, row)
        times = (0, (row.median or 0) / most[0], f"{milliseconds(row.median)} ms")
        traffic = (0.54, row.bytes_per_param / most[1], f"{row.bytes_per_param:.0f} bytes")
        for left, share, text in (times, traffic):
            axes.barh(at, 0.27 * share, left=left, height=0.36, color=_color(row))
            axes.text(left + 0.27 * share + 0.01, at, text, va="center", fontsize=9.5)
    axes.set_xticks([0, 0.54], ["time of a step", "memory traffic per parameter"], ha="left")
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set(xlim=(0, 1), xlabel="shorter is better; blue: this package")
    return figure


def time(run: Run) -> Figure | None:
    """The first workload: what each step takes, and what its bytes would take at the ceiling."""
    rows = _first(run, "step")
    if not rows:
        return None
    figure, axes = _lines(rows)
    for at, row in _places(rows):
        median = (row.median or 0) * 1e3
        floor = row.traffic / (row.ceiling_bandwidth or 1) * 1e3
        axes.plot([floor, median], [at] * 2, color=_color(row), linewidth=3, alpha=0.45)
        axes.plot(floor, at, "|", color=FLOOR, markersize=11, markeredgewidth=2.5)
        axes.plot(median, at, "o", color=_color(row), markersize=7)
        ratio = row.ratio_to_baseline
        _note(
            axes,
            at,
            row,
            f"{milliseconds(row.median)} ms",
            "" if ratio is None else f"{ratio:.2f} x",
        )
    axes.set_xscale("log")
    _plain_ticks(axes, axes.xaxis)
    axes.set_xlabel(f"ms; stroke: what its bytes take at the roofline\nx: times {BASELINE}")
    axes.grid(axis="x")
    return figure


def roofline(run: Run) -> Figure | None:
    """The first workload: how much of the time of each step its bytes account for."""
    return _percent_bars(_first(run, "step"))


def passes(run: Run) -> Figure | None:
    return _percent_bars([row for row in _first(run, "pass") if row.traffic])


def host(run: Run) -> Figure | None:
    """A step with next to nothing to compute, of those that are in the first workload too."""
    names = {row.name for row in _first(run, "step")}
    rows = [row for row in run.section("host") if row.name in names or not names]
    rows.sort(key=lambda row: row.median or 0)
    if not rows:
        return None
    figure, axes = _lines(rows, gaps=False)
    for at, row in enumerate(rows):
        low, median, high = ((q or 0) * 1e3 for q in (row.p20, row.median, row.p80))
        axes.barh(at, median, height=0.34, color=_color(row))
        axes.plot([low, high], [at] * 2, color=INK, linewidth=1)
        _note(axes, at, row, f"{milliseconds(row.median)} ms")
    axes.set_xlim(left=0)
    axes.set_xlabel("ms, median; thin line: p20 to p80")
    return figure


def _percent_bars(rows: list[Row]) -> Figure | None:
    if not rows:
        return None
    figure, axes = _lines(rows)
    for at, row in _places(rows):
        percent = row.percent_of_roofline or 0
        axes.barh(at, percent, height=0.34, color=_color(row))
        axes.plot([100] * 2, [at - 0.25, at + 0.25], color=FLOOR, linewidth=2)
        _note(axes, at, row, f"{milliseconds(row.median)} ms", f"{percent:.0f} %")
    axes.set_xlim(0, max(100, *(row.percent_of_roofline or 0 for row in rows)) + 2)
    axes.set_xlabel("% of roofline")
    return figure


def _first(run: Run, section: str) -> list[Row]:
    """What was timed in the first workload of ``section``, without the ceilings."""
    workloads = run.workloads(section)
    found = run.section(section, workloads[0]) if workloads else []
    return [row for row in found if row.name != row.ceiling and not row.name.endswith("-only")]


def _color(row: Row) -> str:
    return OURS if row.ours else OTHERS


def _places(rows: list[Row], gap: float = 0.5) -> Iterator[tuple[float, Row]]:
    """Where each row's bar is, from the top, with a gap between one family of names and the next."""
    at = -1.0
    for before, row in zip([None, *rows], rows, strict=False):
        new = before is not None and before.name.split()[0] != row.name.split()[0]
        at += 1 + gap * new
        yield at, row


def _lines(rows: list[Row], *, gaps: bool = True) -> tuple[Figure, Axes]:
    """Axes with room for a line of text above the bar of each row."""
    last = [at for at, _ in _places(rows)][-1] if gaps else len(rows) - 1
    figure, axes = _figure(0.75 + 0.36 * (last + 1))
    axes.set_ylim(last + 0.35, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure, axes


def _note(axes: Axes, at: float, row: Row, *figures: str) -> None:
    """The name above a bar, and figures in columns at the right."""
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    long = row.section == "pass"
    weight = "bold" if row.ours and not long else "normal"
    size = 9.5 if long else 10
    axes.text(0, at - 0.45, row.name, ha="left", fontweight=weight, fontsize=size, **beside)
    for column, figure in enumerate(reversed(figures)):
        place = 1 - (0.13 if long else 0.17) * column
        axes.text(place, at - 0.45, figure, ha="right", **beside)


# -- points and curves ----------------------------------------------------------------------------------


def workloads(run: Run) -> Figure | None:
    """Percent of roofline of our steps, and of the baseline, in every workload."""
    colors = _colors(run)
    names = list(dict.fromkeys(r.workload for r in run.section("step") if r.name in colors))
    names = [n for n in names if any(r.ours and r.name in colors for r in run.section("step", n))]
    if not names:
        return None
    figure, axes = _figure(1.3 + 0.3 * len(names))
    for name, color in colors.items():
        found = {r.workload: r for r in run.section("step") if r.name == name}
        points = [(w, found[w].percent_of_roofline) for w in names if w in found]
        if points:
            positions = [names.index(w) for w, _ in points]
            axes.plot([v or 0 for _, v in points], positions, "o", color=color, label=name)
    axes.axvline(100, color=FLOOR, linewidth=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    axes.set_xlabel("% of roofline")
    _legend(figure)
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
    figure, axes = _figure(4)
    colors = _colors(run)
    for name in dict.fromkeys(row.name for row in rows):
        own = sorted((row for row in rows if row.name == name), key=x)
        at, color = [x(row) for row in own], colors[name]
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
    axes.plot([], [], "--", color=INK, linewidth=1, label="floor: bytes at the roofline")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes, axes.yaxis)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _many(value)))
    axes.set_xlabel(xlabel)
    axes.set_ylabel("ms, median; band: p20 to p80")
    axes.grid()
    _legend(figure)
    return figure


def _colors(run: Run) -> dict[str, str]:
    """Of the curves: the same for one name in every plot, and the ink's for the baseline."""
    names = dict.fromkeys(r.name for s in ("size", "count") for r in run.section(s) if r.ours)
    return dict(zip(names, CURVES, strict=False)) | {BASELINE: INK}


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=2, fontsize=9.5, frameon=False, handlelength=1.2)


def _plain_ticks(axes: Axes, axis: Any) -> None:
    """Of a logarithmic axis: 0.1, 1, 10 instead of powers, and 2 and 5 between them where there are few."""
    low, high = sorted(axes.get_xlim() if axis is axes.xaxis else axes.get_ylim())
    few = high / low < 200
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if few and f"{value:e}"[0] in "25" else "")
    )


def _many(value: float) -> str:
    return f"{value:,.0f}" if value < 1e5 else f"{value / 1e6:g} M"


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))  # without pyplot: no window, no global state
    return figure, figure.add_subplot()


PLOTS: dict[str, tuple[str, Callable[[Run], Figure | None]]] = {
    "step": ("Time and memory traffic of a step, beside its peers: shorter is better", step),
    "time": ("What a step takes", time),
    "roofline": ("How much of that its bytes account for", roofline),
    "workloads": ("Our steps, in every workload", workloads),
    "passes": ("Each pass alone", passes),
    "size": ("Time against parameters", size),
    "count": ("Time against the number of tensors", count),
    "host": ("Overhead: next to nothing to compute", host),
}
"""Name of the file -> (heading, how it is drawn)."""
