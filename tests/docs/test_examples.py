"""The Python of the pages runs, block after block, as a reader would paste it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, search_path

sybil = pytest.importorskip("sybil", reason="needs sybil: pip install '.[docs]'")
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser  # noqa: E402

IN_TESTS_OF_THEIR_OWN = {"integrations"}  # which have the libraries
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "node_modules" not in page.parts
    and "```python" in page.read_text()
    and page.stem not in IN_TESTS_OF_THEIR_OWN
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = sybil.Sybil([PythonCodeBlockParser(), SkipParser()]).parse(page)
    examples = list(document)
    assert examples
    for example in examples:
        example.evaluate()


def test_get_started_prints_what_it_says(tmp_path: Path) -> None:
    """As a script, in an empty folder."""
    text = (ROOT / "docs" / "get-started.md").read_text()
    script = re.search(r"```python\n(.+?)```", text, re.S)
    printed = re.search(r"```text\n(.+?)```", text, re.S)
    assert script is not None
    assert printed is not None
    (tmp_path / "spirals.py").write_text(script[1])
    done = subprocess.run(
        [sys.executable, "spirals.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": search_path(ROOT)},
    )
    expected, found = (
        [float(v) for v in re.findall(r"[xy]: ([\d.]+)", output)]
        for output in (printed[1], done.stdout)
    )
    assert found == pytest.approx(expected, rel=0.25)
    assert found[1] < found[0]
    assert (tmp_path / "spirals.pt").exists()
