"""The report of a run: one HTML page that needs nothing beside it, from its result file and plots."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.record.rows import BASELINE, Row, Run
from bench.record.table import COLUMNS, cells, device_line, milliseconds, number, remarks
from bench.report.plots import GRID, INK, PLOTS

TEMPLATES = Path(__file__).with_name("templates")
PAGE = "report.html"
SECTIONS = {
    "ceiling": "What the memory gives",
    "step": "Whole steps",
    "pass": "Each pass alone",
    "options": "Rows of a fixed norm, and the drift monitor",
    "busy": "Beside one thread of another process that never rests",
    "host": "Overhead: 1,000 tensors of next to no size",
    "pairs": "Overhead, step after step",
    "size": "Time against parameters",
    "count": "Time against the number of tensors",
}


def write(run: Run, folder: Path) -> Path:
    """``report.html`` in ``folder``, where the plots of the same run are already."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["readable"] = readable
    page = environment.get_template("report.html.jinja").render(content(run, folder))
    path = folder / PAGE
    path.write_text(page)
    return path


def content(run: Run, folder: Path) -> dict[str, Any]:
    """What the template is filled with."""
    figures = [
        (title, Markup(svg_element((folder / f"{name}.svg").read_text(), title)))
        for name, (title, _) in PLOTS.items()
        if (folder / f"{name}.svg").exists()
    ]
    return {
        "device": device_line(run.provenance),
        "date": str(run.provenance["date"])[:10],
        "quick": run.about["quick"],
        "remarks": remarks(run.about),
        "tiles": tiles(run),
        "workload": first_workload(run),
        "figures": figures,
        "columns": COLUMNS,
        "tables": tables(run),
        "note_columns": NOTES,
        "notes": notes(run),
        "untimed": [r for r in run.rows if r.status != "ok"],
        "provenance": {**run.provenance, **run.about},
    }


def tiles(run: Run) -> list[tuple[str, str, list[str]]]:
    """(name, figure, what it is) of our steps in the first workload."""
    found = []
    rows = run.section("step", *run.workloads("step")[:1])
    for row in rows:
        family, _, backend = row.name.rpartition(" ")
        if not row.ours or backend in ("eager", "graph", "16bit", "8bit"):
            continue
        lines = [number(row.percent_of_roofline, 0, " % of roofline")]
        if row.ratio_to_baseline:
            lines.append(f"{row.ratio_to_baseline:.2f} x the time of {BASELINE}")
        for other in rows:  # the slower ones of the same name
            if other.name in (f"{family} upstream", f"{family} reference"):
                faster = (other.median or 0) / (row.median or 1)
                lines.append(
                    f"{faster:.1f} x as fast as its {other.name.removeprefix(family).strip()}"
                )
        found.append((row.name, f"{milliseconds(row.median)} ms", lines))
    return found


def readable(key: str, value: Any) -> str:
    """A value of the provenance."""
    if key in ("cache", "peak_memory"):
        return f"{value / 1e6:,.0f} MB"
    if isinstance(value, dict):
        return ", ".join(f"{name} {figure}" for name, figure in value.items())
    return "none" if value is None or value == "" else str(value)


def first_workload(run: Run) -> str:
    """What the figures at the top are of."""
    rows = run.section("step", *run.workloads("step")[:1])
    return describe(rows) if rows else ""


def tables(run: Run) -> list[tuple[str, list[tuple[str, list[tuple[tuple[str, ...], bool]]]]]]:
    """(heading, [(workload, [(cells, ours)])]) of everything that was timed."""
    found = []
    for section, heading in SECTIONS.items():
        rows = [row for row in run.rows if row.section == section and row.status == "ok"]
        groups = [
            (describe(list(group)), name)
            for name, group in groupby(rows, key=lambda row: row.workload)
        ]
        blocks = [
            (title, [(cells(row), row.ours) for row in rows if row.workload == name])
            for title, name in groups
        ]
        if blocks:
            found.append((heading, blocks))
    return found


def describe(rows: list[Row]) -> str:
    """One workload: its name, parameters, tensors and dtypes."""
    row = rows[-1]
    if row.section == "ceiling":
        return f"{row.n_params * 4 / 1e6:.0f} MB"
    title = f"{row.workload}: {row.n_params / 1e6:.3g} M parameters in {row.n_tensors:,} tensors"
    if row.param_dtype == row.grad_dtype == "float32":
        return title
    return f"{title}, {row.param_dtype}, gradients {row.grad_dtype}"


NOTES = ("", "bytes counted from", "temporary MB", "launches", "host ms")


def notes(run: Run) -> list[tuple[str, ...]]:
    """As ``NOTES``, of each step in the first workload; the last two are for a GPU."""
    first = run.workloads("step")[:1]
    return [
        (
            row.name,
            row.counted,
            number((row.temporary_bytes or 0) / 1e6, 1) if row.temporary_bytes is not None else "",
            number(row.launches),
            milliseconds(row.host),
        )
        for row in run.section("step", *first)
        if first and row.name != row.ceiling
    ]


def svg_element(text: str, title: str) -> str:
    """The <svg> of a file, without the XML prologue, scaled by the page and named for screen readers.

    Matplotlib's ids are the same in every file, and a page may have each only once. Ink and grid take the
    page's colours, which are others in the dark.
    """
    prefix = "".join(c for c in title.lower() if c.isalpha())
    element = text[text.index("<svg") :]
    for before in ('id="', 'href="#', "url(#"):
        element = element.replace(before, before + prefix + "-")
    element = element.replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    return element.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
