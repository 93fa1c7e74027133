"""Set up the environments of tests/integrations, and run the tests of each.

python tools/test_integrations.py [trainers] [deepspeed] [torchtitan]: these, or all. The libraries of the
three do not install together. Versions are those of constraints.txt; the package is that of this folder,
with the extension that ``pip install -e .`` has built in it.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = {
    "trainers": ["tests/integrations"],  # those of the other two are skipped there
    "deepspeed": [
        "tests/integrations/test_deepspeed.py",
        "tests/integrations/test_trainers_ranks.py",
    ],
    "torchtitan": [
        "tests/integrations/test_torchtitan.py",
        "tests/integrations/test_export_trainers.py",
    ],
}
EXTRAS = {name: f"{name}-test" for name in TESTS} | {"trainers": "integrations-test"}
# DeepSpeed's setup looks at torch, and would build its own operators
ENVIRONMENT = {"deepspeed": {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}}


def run(*command: str, **variables: str) -> None:
    """Run a command in the repository; stop if it fails."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables})
    if done.returncode != 0:
        sys.exit(done.returncode)


def python_of(name: str) -> str:
    """The interpreter of an environment, which is set up if it is not there or its pins have changed."""
    folder = ROOT / f".venv-{name}"
    python, mark = folder / "bin" / "python", folder / ".installed"
    pins = ROOT / "constraints.txt", ROOT / "pyproject.toml"
    if mark.exists() and all(mark.stat().st_mtime > pin.stat().st_mtime for pin in pins):
        return str(python)
    extras = tomllib.loads(pins[1].read_text())["project"]["optional-dependencies"]
    run(sys.executable, "-m", "venv", str(folder))
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(extras[EXTRAS[name]]))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    constraints = ("-c", "constraints.txt")
    # torch comes first and alone: what depends on it would otherwise choose a build of it
    run(*pip, *constraints, "torch", "setuptools", "wheel")
    isolation = ["--no-build-isolation"] if name in ENVIRONMENT else []
    run(*pip, *constraints, *isolation, "torch", "-r", str(wanted), **ENVIRONMENT.get(name, {}))
    mark.touch()
    return str(python)


def main() -> None:
    """Set up and test."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TESTS))
    names = parser.parse_args().names or list(TESTS)
    if unknown := set(names) - set(TESTS):
        parser.error(f"{', '.join(sorted(unknown))}; expected some of {', '.join(TESTS)}")
    for name in names:
        python = python_of(name)
        print(f"-- {name}", flush=True)
        run(
            *(python, "-m", "pytest", "-q", "-m", "integrations", *TESTS[name]),
            PYTHONPATH=str(ROOT),
            OMP_NUM_THREADS="1",
        )


if __name__ == "__main__":
    main()
