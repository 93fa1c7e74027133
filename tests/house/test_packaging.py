"""The documents and the metadata say what the code does."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from support import ROOT

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus
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


def test_argument_table_is_the_signature() -> None:
    table = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", README, re.M)
    documented = {name: ast.literal_eval(default) for name, default in table}
    parameters = inspect.signature(AdamCScheduleFreePlus).parameters
    actual = {n: p.default for n, p in parameters.items() if n != "params"}
    assert documented == actual
    assert list(documented) == list(actual)


def test_metrics_are_documented() -> None:
    for name in (*POLYAK_KEYS, *GROUP_KEYS):
        assert f"`{name}`" in README, name


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


def test_quick_start_runs() -> None:
    """The README's first code block, on a model and data of our own."""
    import torch

    code = re.search(r"```python\n(.+?)```", README, re.S)
    assert code is not None
    layer = torch.nn.Linear(3, 1)
    before = [p.detach().clone() for p in layer.parameters()]
    names = {
        "model": lambda batch: torch.nn.functional.mse_loss(
            layer(batch), batch.sum(1, keepdim=True)
        ),
        "data": [torch.randn(8, 3) for _ in range(3)],
    }
    names["model"].parameters = layer.parameters  # type: ignore[attr-defined]
    exec(code[1], names)
    optimizer = names["optimizer"]
    assert optimizer.metrics()["k"] == 3  # type: ignore[attr-defined]
    assert not optimizer.param_groups[0]["train_mode"]  # type: ignore[attr-defined]
    assert all(
        not torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True)
    )


@pytest.mark.parametrize("document", ["README.md"])
def test_other_examples_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code blocks one after the other, with a model that has BatchNorm."""
    import schedulefree
    import torch

    class Model(torch.nn.Module):
        """Its output is the loss."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layers(batch).square().mean()

    monkeypatch.chdir(tmp_path)
    names: dict = {name: getattr(sfplus_kernels, name) for name in sfplus_kernels.__all__}
    names |= {"torch": torch, "model": Model(), "batch": torch.randn(8, 3)}
    names["data"] = names["batches"] = [names["batch"]]
    validated = []
    names["validate"] = lambda model: validated.append(model.layers[0].weight.detach().clone())
    names["optimizer"] = names["AdamWScheduleFree"](names["model"].parameters())
    upstream = schedulefree.AdamWScheduleFree(names["model"].parameters())
    names["checkpoint"] = {
        "model": names["model"].state_dict(),
        "optimizer": upstream.state_dict(),
    }
    blocks = re.findall(r"```python\n(.+?)```", (ROOT / document).read_text(), re.S)
    assert len(blocks) > 1
    for block in blocks:
        if "sfplus_kernels.integrations" in block:
            continue  # where the trainers are installed: tests/integrations
        exec(block, names)
    assert len(validated) == (2 if document == "README.md" else 0)
    for path in tmp_path.glob("model.pt"):
        names["model"].load_state_dict(torch.load(path, weights_only=True))
    assert {path.name for path in tmp_path.iterdir()} == (
        {"model.pt"} if document == "README.md" else {"optimizer.pt"}
    )


def test_no_source_is_longer_than_300_lines() -> None:
    folders = ("sfplus_kernels", "csrc", "bench", "build_backend", "cmake", "examples", "tools")
    kinds = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".cmake"}
    sources = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kinds]
    assert len(sources) > 100
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := p.read_text().count("\n")) > 300}
    assert long == {}
