"""The documents and the metadata say what the code does."""

import inspect
import re
import tomllib

import pytest
import torch
from support import ROOT

import sfplus_kernels
from sfplus_kernels.state.run import GROUP_KEYS, POLYAK_KEYS

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "docs").rglob("*.md")
        if "node_modules" not in path.parts
    ),
]
README = (ROOT / "README.md").read_text()
CLASSES = [
    name
    for name, value in vars(sfplus_kernels).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and not name.endswith("Closure")  # these have the arguments of the class in their name
]


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_is_in_the_docstring(name: str) -> None:
    cls = getattr(sfplus_kernels, name)
    described = re.search(r"Args:\n(.*?)\n\S", inspect.getdoc(cls) or "", re.S)
    assert described is not None
    names = ", ".join(re.findall(r"^    ([\w, ]+):", described[1], re.M)).split(", ")
    assert set(inspect.signature(cls).parameters) <= set(names)


def test_metrics_are_documented() -> None:
    page = (ROOT / "docs" / "api" / "optimizers.md").read_text()
    for name in (*POLYAK_KEYS, *GROUP_KEYS):
        assert f"`{name}`" in page, name


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    assert README.count("\n") <= 200
    assert "    make train " in README
    assert "    make test " in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    for target in targets:
        path, _, anchor = target.partition("#")
        source = (ROOT / document).parent / path if path else ROOT / document
        assert source.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", source.read_text(), re.M)
            assert anchor in {
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            }, target
    for path in re.findall(r"\b(?:tests|bench|docs|examples|csrc)/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), path


def test_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for document in DOCUMENTS:
        commands = re.findall(r"(?:^    |`)make ([\w-]+)", (ROOT / document).read_text(), re.M)
        assert set(commands) <= targets, document


def test_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    torch_requirements = [d for d in project["project"]["dependencies"] if d.startswith("torch")]
    assert len(project["project"]["dependencies"]) == len(torch_requirements) == 1
    assert "==" not in torch_requirements[0]
    assert "<" not in torch_requirements[0]
    assert not any("torch" in requirement for requirement in project["build-system"]["requires"])
    version = sfplus_kernels.__version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()


def test_no_source_is_longer_than_300_lines() -> None:
    folders = ("sfplus_kernels", "csrc", "bench", "build_backend", "cmake", "examples", "tools")
    kinds = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".cmake"}
    sources = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kinds]
    assert len(sources) > 100
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := p.read_text().count("\n")) > 300}
    assert long == {}
