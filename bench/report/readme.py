"""The figures of README and docs/benchmarks.md, from the result files that they link to: make readme-figures.

No figure is typed by hand: the sections between the markers are written here, and a test compares. The README
has the few rows that decide, the page has all.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from bench.record.provenance import ROOT
from bench.record.rows import BASELINE, RESULTS, Row, Run, read
from bench.record.table import device_line, markdown, milliseconds, number, percent, remarks
from bench.report.plots import PLOTS, draw
from bench.work.workloads import OTHER_CLASSES

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- performance: written by `make readme-figures` -->"
END = "<!-- end of performance -->"
LINK = r"\]\((?:\.\./)?(bench/results/[^)]+/results\.json)\)"
DEVICES = {"cpu": "On a CPU", "cuda": "On a GPU"}
DECISIVE = (
    "torch AdamW fused",
    "AdamWScheduleFree cpu",
    "AdamWScheduleFree cuda",
    "AdamWScheduleFree upstream",
    "ScheduleFree+ cpu",
    "ScheduleFree+ cuda",
    "ScheduleFree+ reference",
    "SGDScheduleFree cpu",
    "SGDScheduleFree cuda",
)
"""What the README shows of a run, in this order."""


def newest(device_type: str) -> Path | None:
    """The last whole run on such a device in bench/results, by the names of the folders."""
    for path in sorted(
        (ROOT / "bench" / "results").glob(f"*-{device_type}/{RESULTS}"), reverse=True
    ):
        about = read(path).about
        if not (about["quick"] or about["optimizers"] or about["workloads"]):
            return path
    return None


def summary(paths: dict[str, Path | None]) -> str:
    """The README's section, markers included; ``paths`` has a result file or None for each of ``DEVICES``."""
    blocks = [BEGIN]
    for device_type, heading in DEVICES.items():
        path = paths.get(device_type)
        if path is None:
            blocks.append(f"{heading}: not yet measured.")
            continue
        run = read(path)
        folder = path.parent.relative_to(ROOT).as_posix()
        rows = run.section("step", run.workloads("step")[0])
        decisive = sorted(
            (row for row in rows if row.name in DECISIVE), key=lambda row: DECISIVE.index(row.name)
        )
        blocks += [
            f"![{PLOTS['step'][0]}]({folder}/step.png)",
            f"{heading}, {_circumstances(run, folder)}:{_remarks(run)}",
            _table([FEW, ALIGNMENT, *map(_few, decisive)]),
        ]
    return "\n\n".join([*blocks, END])


FEW = ("", "one step, ms", "x AdamW fused", "bytes moved per parameter", "bytes of state")
ALIGNMENT = ("---", *["---:"] * (len(FEW) - 1))


def _few(row: Row) -> tuple[str, ...]:
    state = None if row.state_bytes is None else row.state_bytes / row.n_params
    return (
        row.name,
        milliseconds(row.median),
        number(row.ratio_to_baseline, 2),
        number(row.bytes_per_param),
        number(state),
    )


def render(paths: dict[str, Path | None]) -> str:
    """The page's section, markers included; ``paths`` as for ``summary``."""
    blocks = [BEGIN]
    for device_type, heading in DEVICES.items():
        path = paths.get(device_type)
        blocks.append(f"## {heading}")
        blocks += ["Not yet measured."] if path is None else measured(path)
    return "\n\n".join([*blocks, END])


def _circumstances(run: Run, folder: str) -> str:
    first = run.workloads("step")[0]
    rows = run.section("step", first)
    n_params, rounds = rows[-1].n_params, sorted(row.rounds for row in rows)
    of_rounds = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
    return (
        f"one step over {n_params / 1e6:.1f} M float32 parameters ({first}) "
        f"on {device_line(run.provenance)}; "
        f"median of {of_rounds} rounds in turns, with cold caches, from [the saved run]({folder}/{RESULTS}) "
        f"of {str(run.provenance['date'])[:10]} at commit {str(run.provenance['commit'])[:12]}"
    )


def _remarks(run: Run) -> str:
    """Behind the circumstances, where there is something to know before the figures."""
    said = remarks(run.about)
    return f" **{said}**" if said else ""


def measured(path: Path) -> list[str]:
    """Paragraphs of one run."""
    run = read(path)
    folder = "../" + path.parent.relative_to(ROOT).as_posix()
    first, *others = run.workloads("step")
    circumstances = _circumstances(run, folder)
    found = [
        f"{circumstances[0].upper()}{circumstances[1:]}:{_remarks(run)}",
        markdown(run.section("step", first)),
        _plots(folder, "time", "roofline"),
    ]
    if OTHER_CLASSES in others:
        others.remove(OTHER_CLASSES)
        found += ["### The other classes", markdown(run.section("step", OTHER_CLASSES))]
    found += [
        "### The other workloads",
        "In milliseconds, with the percent of roofline:",
        workload_table(run, others),
        _plots(folder, "size", "count"),
    ]
    for workload in (name for name in others if name.startswith("bf16")):
        found += [f"#### {workload}", markdown(run.section("step", workload))]
    if run.section("pass"):
        found += [
            "### Each pass alone",
            markdown(run.section("pass", run.workloads("pass")[0])),
        ]
    if options := run.section("options"):
        found += [
            "### Rows of a fixed norm, and the drift monitor",
            "The same steps without, with `row_norm` for all matrices, and with `monitor_drift()`:",
            options_table(options),
        ]
    if busy := run.section("busy"):
        found += [
            "### Beside a busy thread",
            "The same steps, with warm caches, while one thread of another process never rests:",
            busy_table(busy, run.section("step", first)),
        ]
    if run.section("host"):
        found += [
            "### Overhead of a step",
            "What is left when there is next to nothing to compute:",
        ]
        found.append(_plots(folder, "host"))
    if pairs := run.section("pairs"):
        found += [
            "Step after step, as a training loop has it: some steps of torch's fused AdamW, some of "
            "another, and so on, so that each finds its own things in the caches; the quotient is that of "
            "neighbours. Some have all gradients moved before a step (untimed), and some are what the "
            'host does for a step on a GPU, whose launches do nothing here ("kernels faked"):',
            markdown(pairs),
        ]
    found.append("### What was not timed")
    wrong = [f"{row.name} ({row.workload})" for row in run.rows if row.status == "wrong"]
    if wrong:
        found.append(f"Its result is not that of the reference: {_names(wrong)}.")
    failed = [f"{row.name} ({row.workload})" for row in run.rows if row.status == "failed"]
    if failed:
        found.append(f"It failed, and the saved run says how: {_names(failed)}.")
    absent = [row.name for row in run.rows if row.status == "absent"]
    if absent:
        found.append(f"Absent in this run: {_names(absent)}.")
    return found


def _names(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def workload_table(run: Run, workloads: list[str]) -> str:
    """One line for each workload: our steps, and the baseline's."""
    names = [row.name for row in run.section("size") if row.ours]
    names = [*dict.fromkeys(names), BASELINE]
    lines = [("", "M parameters", "tensors", *names)]
    lines.append(("---", *["---:"] * (len(names) + 2)))
    for workload in workloads:
        found = {row.name: row for row in run.section("step", workload)}
        some = next(row for row in found.values() if row.name != row.ceiling)
        times = [_time_and_percent(found.get(name)) for name in names]
        lines.append((workload, f"{some.n_params / 1e6:.3g}", f"{some.n_tensors:,}", *times))
    return _table(lines)


def options_table(rows: list[Row]) -> str:
    """How much longer steps take with an option than without."""
    medians = {row.name: row.median for row in rows}
    lines: list[tuple[str, ...]] = [("", "ms, median", "p20 - p80", "times as long as without")]
    lines.append(("---", "---:", "---:", "---:"))
    for row in rows:
        name, _, option = row.name.partition(", ")
        without = medians.get(name)
        times = (row.median or 0) / without if option and without else None
        if row.ours:
            band = f"{milliseconds(row.p20)} - {milliseconds(row.p80)}"
            lines.append((row.name, milliseconds(row.median), band, number(times, 2)))
    return _table(lines)


def busy_table(busy: list[Row], quiet: list[Row]) -> str:
    """How much longer steps take beside a busy thread than they did without."""
    medians = {row.name: row.median for row in quiet}
    lines: list[tuple[str, ...]] = [("", "ms, median", "p20 - p80", "times as long")]
    lines.append(("---", "---:", "---:", "---:"))
    for row in busy:
        alone = medians.get(row.name)
        times = (row.median or 0) / alone if alone else None
        band = f"{milliseconds(row.p20)} - {milliseconds(row.p80)}"
        lines.append((row.name, milliseconds(row.median), band, number(times, 1)))
    return _table(lines)


def _time_and_percent(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{milliseconds(row.median)} ({percent(row)})"


def _table(lines: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plots(folder: str, *names: str) -> str:
    """Beside each other where there is room, under each other on a phone; those that the run had time for."""
    image = '<img alt="{}" src="{}/{}.png" width="420">'
    drawn = [name for name in names if (ROOT / "docs" / folder / f"{name}.png").is_file()]
    return "\n".join(image.format(PLOTS[name][0], folder, name) for name in drawn)


def linked(text: str) -> dict[str, Path | None]:
    """The result files that a document names, by device type."""
    paths: dict[str, Path | None] = dict.fromkeys(DEVICES)
    for link in re.findall(LINK, text):
        path = ROOT / link
        paths[read(path).provenance["device_type"]] = path
    return paths


def section(text: str) -> str:
    """The generated part of a document. Raises ValueError where it has no markers."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"the document has no line {BEGIN!r} with {END!r} after it; put both back")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


WRITTEN: dict[Path, Callable[[dict[str, Path | None]], str]] = {README: summary, PAGE: render}
"""The documents, and what writes their sections."""


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m bench.report.readme",
        description="Write the figures of the documents from the last whole runs in bench/results.",
    ).parse_args()
    paths = {device_type: newest(device_type) for device_type in DEVICES}
    for path in paths.values():
        if path is not None:
            draw(read(path), path.parent, ["step"])
    for document, write in WRITTEN.items():
        text = document.read_text()
        document.write_text(text.replace(section(text), write(paths)))
    print("\n".join(f"{device}: {path or 'not yet measured'}" for device, path in paths.items()))


if __name__ == "__main__":
    main()
