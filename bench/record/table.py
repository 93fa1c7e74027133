"""Tables of a run: one set of columns for the terminal, the report and the README."""

from __future__ import annotations

from bench.record.rows import NOISE, Row

COLUMNS = (
    "",
    "ms, median",
    "x AdamW fused",
    "of roofline",
    "p20 - p80",
    "B/param",
    "by time",
    "GB/s",
    "state B/param",
)
"""What matters most comes first: where there is little room, the last ones are scrolled to or left out."""


def milliseconds(seconds: float | None) -> str:
    """Three figures, whatever the size."""
    if seconds is None:
        return ""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 10 else f"{value:.1f}"


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


def percent(row: Row) -> str:
    """Of roofline; where noise can have moved that by more than ``NOISE``, with what it is between."""
    found, low, high = row.percent_of_roofline, row.percent_low, row.percent_high
    said = number(found, 0, " %")
    if found is None or low is None or high is None or max(found - low, high - found) <= NOISE:
        return said
    return f"{said} [{low:.0f} - {high:.0f}]"


def cells(row: Row) -> tuple[str, ...]:
    """One row in the order of ``COLUMNS``; what does not apply is empty."""
    if row.status != "ok":
        return (row.name, row.status, row.reason, *[""] * (len(COLUMNS) - 3))
    moves = row.traffic > 0 and row.section not in ("host", "pairs")
    is_ceiling = row.name == row.ceiling or row.section == "ceiling"
    beside_steps = (
        is_ceiling and row.section != "ceiling"
    )  # its array is of another size than theirs
    state = None if is_ceiling or row.state_bytes is None else row.state_bytes / row.n_params
    return (
        f"{row.name} bandwidth" if is_ceiling else row.name,
        "" if beside_steps else milliseconds(row.median),
        "" if is_ceiling else number(row.ratio_to_baseline, 2),
        percent(row),
        "" if beside_steps else f"{milliseconds(row.p20)} - {milliseconds(row.p80)}",
        number(row.bytes_per_param) if moves and not is_ceiling else "",
        number(row.bytes_per_param_by_time) if moves and not is_ceiling else "",
        number((row.bandwidth or 0) / 1e9, 1) if moves else "",
        number(state, 1),
    )


def fitting(rows: list[Row], width: int) -> list[tuple[str, ...]]:
    """Heading and rows, with as many of the columns as fit into a terminal so wide."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) + 3 for column in zip(*lines, strict=True)]
    fits = [n for n in range(2, len(COLUMNS) + 1) if sum(widths[:n]) < width]
    return [line[: max(fits, default=2)] for line in lines]


def markdown(rows: list[Row]) -> str:
    """The rows that were measured, as a Markdown table."""
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1))]
    lines += [cells(row) for row in rows if row.status == "ok"]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def device_line(provenance: dict) -> str:
    """What it was measured on, in one line."""
    where = [str(provenance["device"]), f"{provenance['threads']} threads"]
    where += [str(provenance["isa"])] if provenance["isa"] else []
    return ", ".join([*where, f"torch {provenance['torch']}"])


def unrest(about: dict) -> str:
    """A sentence if the machine was not quiet in a run that is ``about`` this, else ""."""
    reasons = about.get("machine", {}).get("not_quiet", [])
    return f"The machine was not quiet: {'; '.join(reasons)}." if reasons else ""


def excess(about: dict) -> str:
    """A sentence if steps of a run that is ``about`` this were quicker than their ceilings, else ""."""
    above = about.get("above_ceilings", [])
    return f"Above their ceilings: {'; '.join(above)}." if above else ""


def remarks(about: dict) -> str:
    """What whoever reads a run's figures has to know first."""
    return " ".join(filter(None, (unrest(about), excess(about))))
