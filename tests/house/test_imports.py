"""What importing costs and needs, and that imports point downwards only."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import sfplus_kernels

PACKAGE = Path(sfplus_kernels.__file__).parent
# what a part may import of the package, itself apart: optim -> ops -> backends -> {kernels, _C}
ALLOWED = {
    "optim": {"ops", "collective", "sharding", "backends"},
    "ops": {"collective", "sharding", "tensor_checks", "backends"},
    "tensor_checks": {"sharding"},
    "collective": {"backends"},
    "sharding": set(),
    "backends": {"kernels", "_C"},
    "kernels": set(),
    "reference": set(),
    "_version": set(),
    "__main__": {"backends", "_version"},
    "__init__": {"backends", "optim", "_version"},
}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if (
                node.module == "sfplus_kernels"
            ):  # from the root: only its parts, not what it exports
                names |= {f"sfplus_kernels.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


def test_imports_point_downwards() -> None:
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        seen.add(part)
        for name in imports_of(path):
            if name.partition(".")[0] == "sfplus_kernels":
                target = name.split(".")[1]
                assert target in ALLOWED[part] | {part}, f"{path} imports {name}"
    assert seen == set(ALLOWED)


def test_optimizers_touch_layout_and_registry_only() -> None:
    """No backend is named in optim: the contract is all that it knows."""
    for path in (PACKAGE / "optim").rglob("*.py"):
        backends = {n for n in imports_of(path) if n.startswith("sfplus_kernels.backends")}
        assert backends <= {"sfplus_kernels.contract.layout", "sfplus_kernels.backends.registry"}


def python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_quick_and_brings_nothing_heavy(tmp_path: Path) -> None:
    code = """
import json, sys, time, torch
before = set(sys.modules)
start = time.process_time()  # what else the machine does is not our business
import sfplus_kernels
seconds = time.process_time() - start
print(json.dumps([seconds, sorted({m.partition(".")[0] for m in set(sys.modules) - before})]))
"""
    # byte code is kept, as it is for users: the second run and the third need not compile
    cache = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    runs = [json.loads(python(code, **cache)) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.05
    assert not {"triton", "numpy", "rich"} & set(runs[0][1])


def test_works_without_triton_and_without_the_extension() -> None:
    """Both are hidden from the import system; eager does the work and the report says why."""
    code = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton" or name == "sfplus_kernels._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import torch
import sfplus_kernels
from sfplus_kernels.backends import registry
registry.importlib.util.find_spec = lambda name: None
print(sfplus_kernels.backends.report())
p = torch.nn.Parameter(torch.ones(3))
optimizer = sfplus_kernels.AdamCScheduleFreePlus([p])
optimizer.train()
p.square().sum().backward()
optimizer.step(loss=3.0)
print(optimizer._runtime.engine.backend_name, float(p.detach().max()) < 1)
try:
    sfplus_kernels.AdamCScheduleFreePlus([p], backend="cpu")
except RuntimeError as error:
    print(error)
"""
    report, worked, refusal = python(code).splitlines()
    assert "No module named 'sfplus_kernels._C'" in report
    assert "triton is not installed" in report
    assert worked == "eager True"
    assert "'cpu' is unavailable" in refusal
    assert "leave that folder" in refusal
