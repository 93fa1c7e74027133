"""What the benchmarks make of a result file: plots, report, the README's section."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest

from bench.record import rows, table
from bench.record.rows import Row
from bench.report import plots, readme
from bench.report.page import write as write_page

STORED = Path(__file__).parent / "bench_results.json"
"""Rows of a disturbed rehearsal on two cores: real ones, whose times mean nothing."""


class Page(HTMLParser):
    """What a test wants to know of a page, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "image"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        values = dict(attrs)
        self.ids += [str(values["id"])] if "id" in values else []
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()


def test_report_of_a_stored_run(tmp_path: Path) -> None:
    run = rows.read(STORED)
    drawn = plots.draw(run, tmp_path)
    assert [path.stem for path in drawn] == list(plots.PLOTS)
    assert all(path.with_suffix(".png").stat().st_size > 1000 for path in drawn)
    text = write_page(run, tmp_path).read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.seen.count("svg") == len(plots.PLOTS)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.links)  # nothing is beside the page
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert plots.INK not in "".join(re.findall("<svg.*?</svg>", text, re.DOTALL))  # dark pages
    assert 'name="viewport"' in text
    assert "overflow-x: auto" in text  # wide tables scroll within a narrow page
    assert str(run.provenance["commit"]) in text
    assert "A quick run" in text
    assert "apex FusedAdam" in text
    (plus,) = [r for r in run.section("step", "gpt2-blocks") if r.name == "ScheduleFree+ cpu"]
    assert f"<b>{table.milliseconds(plus.median)} ms</b>" in text


def test_a_phone_shows_the_text_of_the_plots_at_a_readable_size(tmp_path: Path) -> None:
    for path in plots.draw(rows.read(STORED), tmp_path):
        text = path.read_text()
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])  # type: ignore[index]
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: [\w ]*?([\d.]+)px", text)]
        assert min(sizes) * 350 / width > 10, path.name  # 350 pixels of 390 are the plot's


def test_plots_come_from_the_file_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        figure = plots.size(rows.read(STORED))
        assert figure is not None
        with mpl.rc_context(plots.STYLE):
            figure.savefig(folder / "size.svg", metadata={"Date": None})
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_a_run_of_a_few_parts_has_a_report_too(tmp_path: Path) -> None:
    run = copy.deepcopy(rows.read(STORED))
    run.rows[:] = [row for row in run.rows if row.section == "ceiling"]
    assert plots.draw(run, tmp_path) == []
    assert "What the memory gives" in write_page(run, tmp_path).read_text()


# -- README and docs/benchmarks.md ------------------------------------------------------------------------


@pytest.mark.parametrize("document", readme.WRITTEN, ids=lambda path: path.name)
def test_documents_are_what_their_result_files_say(document: Path) -> None:
    text = document.read_text()
    written = readme.WRITTEN[document](readme.linked(text))
    assert readme.section(text) == written, "run `make readme-figures`"


def test_the_readmes_picture_is_there() -> None:
    (picture,) = re.findall(r"\]\((bench/results/[^)]+/step\.png)\)", readme.README.read_text())
    assert (readme.ROOT / picture).stat().st_size > 1000


def test_readme_section_of_a_stored_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    folder = tmp_path / "bench" / "results" / "2026-01-01-cpu"
    folder.mkdir(parents=True)
    content = json.loads(STORED.read_text())
    path = folder / rows.RESULTS
    path.write_text(json.dumps(content))
    assert readme.newest("cpu") is None  # a rehearsal does not count
    content["run"]["quick"] = False
    path.write_text(json.dumps(content))
    assert readme.newest("cpu") == path
    section = readme.render({"cpu": path, "cuda": None})
    assert readme.linked(section) == {"cpu": path, "cuda": None}
    assert "## On a GPU\n\nNot yet measured." in section
    assert "Absent in this run: apex FusedAdam." in section
    assert "Its result is not that of the reference: torch SGD fused (bf16)." in section
    few = readme.summary({"cpu": path, "cuda": None})
    assert readme.linked(few) == {"cpu": path, "cuda": None}
    for row in rows.read(path).section("step", "gpt2-blocks"):
        assert "| " + " | ".join(table.cells(row)) + " |" in section
        line = f"| {row.name} | {table.milliseconds(row.median)} |"
        assert (line in few) == (row.name in readme.DECISIVE)


def test_steps_in_pairs_have_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    content = json.loads(STORED.read_text())
    moved = "ScheduleFree+ cuda, kernels faked, gradients move"
    row = next(r for r in content["rows"] if r["section"] == "host" and r["status"] == "ok")
    content["rows"].append({**row, "section": "pairs", "name": moved, "ratio_to_baseline": 0.125})
    path = tmp_path / rows.RESULTS
    path.write_text(json.dumps(content))
    section = readme.render({"cpu": path, "cuda": None})
    assert section.index("Step after step") < section.index(f"| {moved} |")
    (line,) = [line for line in section.splitlines() if moved in line]
    assert table.milliseconds(row["median"]) in line
    assert "0.12" in line
    run = rows.read(path)
    plots.draw(run, tmp_path, ["step"])
    assert "Overhead, step after step" in write_page(run, tmp_path).read_text()


def test_steps_with_options_have_their_table() -> None:
    plain = Row("options", "w", "SGD cpu", ours=True, median=0.0101, p20=0.0101, p80=0.0111)
    more = Row(
        "options", "w", "SGD cpu, row_norm", ours=True, median=0.0121, p20=0.0111, p80=0.0131
    )
    lines = readme.options_table([plain, more]).splitlines()
    assert lines[2:] == [
        "| SGD cpu | 10.1 | 10.1 - 11.1 |  |",
        "| SGD cpu, row_norm | 12.1 | 11.1 - 13.1 | 1.20 |",
    ]


def test_a_readme_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="put both back"):
        readme.section("# A project")
