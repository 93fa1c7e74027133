"""Installs a wheel into an empty environment with torch, outside the repository, and trains there.

    python tools/test_wheel.py dist/*.whl
    python tools/test_wheel.py --torch 2.6.0 --tests dist/*.whl

Also checks the wheel itself: its size, what is in it, which libraries its extension needs, and how old a
Linux may be; and what is in the source distribution beside it, if there is one.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

LARGEST = 4e6
"""Bytes."""

ALLOWED = (
    "libstdc++.so",
    "libgcc_s.so",
    "libc.so",
    "libm.so",
    "ld-linux",
    "libpthread",
    "libdl",
    "librt",
)

IN_SDIST = {
    *("CHANGELOG.md", "CMakeLists.txt", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"),
    *("pyproject.toml", "setup.cfg", "setup.py"),
    *("build_backend", "cmake", "csrc", "sfplus_kernels", "sfplus_kernels.egg-info"),
}
"""What a build needs, and what setuptools adds."""

TESTS = (
    "numbers/test_parity.py",
    "numbers/test_family.py",
    "checkpoints/test_checkpoint.py",
    "input/test_inputs.py",
    "use/test_closure_forms.py",
    "numbers/test_wrapper.py",
)
"""Those that show most in a minute; without Triton, whose release goes with torch's."""

FOR_TESTS = ("hypothesis", "numpy", "pytest", "pytest-cov", "pytest-xdist", "schedulefree")


def main() -> None:
    """Raise if anything is wrong with the wheel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", help="version, if not that of constraints.txt")
    parser.add_argument("--tests", action="store_true", help="run some of the tests there too")
    arguments = parser.parse_args()
    wheel: Path = arguments.wheel.resolve()
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB")
    assert size < LARGEST, f"{wheel.name} has {size} bytes, more than {LARGEST:.0f}"
    for sdist in wheel.parent.glob("*.tar.gz"):
        check_sdist(sdist)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_contents(wheel, folder)
        environment = folder / "environment"
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        constraints = folder / "constraints.txt"
        constraints.write_text(constraints_for(arguments.torch))
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        # torch first: whatever depends on it would otherwise choose a build of it
        run([*pip, "-c", str(constraints), "torch"], folder)
        run([*pip, "--no-deps", str(wheel)], folder)
        program = shutil.copy(ROOT / "tools" / "train_tiny.py", folder)
        run([python, program], folder)
        run([python, "-m", "sfplus_kernels"], folder)
        if platform.system() == "Linux":
            run([*pip, "-c", str(constraints), "auditwheel"], folder)
            print(platform_tag(python, wheel))
        if arguments.tests:
            run([*pip, "-c", str(constraints), *FOR_TESTS], folder)
            shutil.copytree(ROOT / "tests", folder / "tests")
            shutil.copy(ROOT / "pyproject.toml", folder)
            files = [f"tests/{name}" for name in TESTS]
            run([python, "-m", "pytest", "-q", "-n", "2", "-k", "not triton", *files], folder)


def platform_tag(python: str, wheel: Path) -> str:
    """The oldest Linux that the wheel runs on, in the words of auditwheel, which repairs such wheels."""
    command = [python, "-m", "auditwheel", "show", str(wheel)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tag = re.search(r'"(manylinux_\d+_\d+_\w+)"', said)
    assert tag is not None, f"not a wheel for any Linux but this one:\n{said}"
    return f"platform tag {tag[1]}"


def constraints_for(torch: str | None) -> str:
    """constraints.txt, with this version of torch and whatever Triton it asks for."""
    text = (ROOT / "constraints.txt").read_text()
    if torch is None:
        return text
    return re.sub(r"^(torch|triton)==.*\n", "", text, flags=re.MULTILINE) + f"torch=={torch}\n"


def check_sdist(sdist: Path) -> None:
    """What a build needs and nothing else; that nothing lacks shows when the wheel is built from it."""
    with tarfile.open(sdist) as archive:
        names = [member.name for member in archive if member.isfile()]
    found = {name.split("/")[1] for name in names}
    assert found == IN_SDIST, f"{sdist.name}: {sorted(found ^ IN_SDIST)}"
    strange = [name for name in names if name.endswith((".so", ".pyc", ".o"))]
    assert not strange, f"{sdist.name} has {strange}"


def check_contents(wheel: Path, folder: Path) -> None:
    """The package and nothing else; the extension needs the C and C++ libraries only."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (extension,) = (
            n for n in names if n.startswith("sfplus_kernels/_C.") and n.endswith(".so")
        )
        archive.extract(extension, folder)
    parts = {name.split("/")[0] for name in names}
    assert all(re.fullmatch(r"sfplus_kernels(-.*\.dist-info)?", part) for part in parts), parts
    if shutil.which("readelf") is None:
        print("no readelf here: the libraries that the extension needs are not checked")
        return
    listing = subprocess.run(
        ["readelf", "-d", str(folder / extension)], check=True, capture_output=True, text=True
    ).stdout
    needed = [line.split("[")[1].split("]")[0] for line in listing.splitlines() if "NEEDED" in line]
    print("needs", ", ".join(needed))
    strange = [name for name in needed if not name.startswith(ALLOWED)]
    assert not strange, f"the extension needs {strange}"
    shutil.rmtree(folder / "sfplus_kernels")  # else it would be imported there


def run(command: list[str], folder: Path) -> None:
    """In ``folder``, with nothing of this environment's Python settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(command, cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
