"""Installs a wheel into an empty environment with torch, outside the repository, and trains there.

    python tools/test_wheel.py constraints.txt dist/*.whl

Also checks the wheel itself: its size, what is in it, and which libraries its extension needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

LARGEST = 10e6
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


def main(constraints: Path, wheel: Path) -> None:
    """Raise if anything is wrong with the wheel."""
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB")
    assert size < LARGEST, f"{wheel.name} has {size} bytes, more than {LARGEST:.0f}"
    with tempfile.TemporaryDirectory() as folder:
        check_contents(wheel, Path(folder))
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        # torch first: whatever depends on it would otherwise choose a build of it
        run([*pip, "-c", str(constraints.resolve()), "torch"], folder)
        run([*pip, "--no-deps", str(wheel.resolve())], folder)
        program = shutil.copy(Path(__file__).with_name("train_tiny.py"), folder)
        run([str(python), program], folder)
        run([str(python), "-m", "sfplus_kernels"], folder)


def check_contents(wheel: Path, folder: Path) -> None:
    """The package and nothing else; the extension needs the C and C++ libraries only."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (extension,) = (
            n for n in names if n.startswith("sfplus_kernels/_C.") and n.endswith(".so")
        )
        archive.extract(extension, folder)
    parts = {name.split("/")[0] for name in names}
    assert all(part.startswith("sfplus_kernels") for part in parts), parts
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


def run(command: list[str], folder: str) -> None:
    """In ``folder``, with nothing of this environment's Python settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(command, cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
