"""Everything that wants a GPU, in order of worth: what ``make gpu`` runs. Leaves one folder to commit.

    python tools/gpu_run.py --out gpu-results --seconds 480
    python tools/gpu_run.py --parts report,tests

Needs torch, pytest, pybind11, cmake and ninja, and no network: the kernels are compiled by the NVRTC that
torch's wheels for CUDA bring, or by nvcc. Each part is begun only if there is time, and cut off when its own
is over; what it has written by then is kept.

    build       the extension, for this GPU alone, into sfplus_kernels/
    report      machine, versions, commit (of SFPLUS_COMMIT where there is no git), `python -m sfplus_kernels`
    tests       the tests marked gpu; warnings are shown and are no errors, for the versions here are not ours
    suite       the tests of every backend, those of cuda and triton
    bench       the passes and steps of large and of many tensors, saved after each
    sanitizers  compute-sanitizer over every kernel, torch's caching of memory off
    verdicts    what docs/performance.md predicted beside what was measured (always done last)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
SUITE = ["numbers", "use", "input", "checkpoints"]
KEPT_LINES = 40
"""Of the end of each log: a folder that is committed stays small."""


class Run:
    """One run: where it writes, how much time there is."""

    def __init__(self, out: Path, seconds: float, device: str) -> None:
        self.out, self.device = out, device
        self._end = time.monotonic() + seconds
        self.outcomes: dict[str, str] = {}
        out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def call(self, log: str, command: list[str], most: float, **environment: str) -> int:
        """Run a command in the repository; the end of what it says goes to ``log``.

        Returns:
            Its exit status: 124 if it took more than ``most`` seconds, or than there are.
        """
        limit = max(1.0, min(most, self.left()))
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(ROOT / "build" / "triton"),
        }
        begin = time.monotonic()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **own, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
            )
            said, status = done.stdout, done.returncode
        except subprocess.TimeoutExpired as late:
            said = (
                late.stdout.decode(errors="replace")
                if isinstance(late.stdout, bytes)
                else late.stdout or ""
            )
            said, status = f"{said}\ncut off after {limit:.0f} s", 124
        except OSError as error:
            said, status = str(error), 127
        lines = said.splitlines()
        took = f"{time.monotonic() - begin:.1f} s, {len(lines)} lines"
        heading = f"$ {' '.join(command)}\n# status {status}, {took}"
        (self.out / log).write_text("\n".join([heading, *lines[-KEPT_LINES:]]) + "\n")
        return status


def build(run: Run) -> str:
    """The extension by plain CMake; the compiled kernels are those of this GPU."""
    import pybind11
    import torch

    capability = torch.cuda.get_device_capability() if run.device == "cuda" else (9, 0)
    folder = ROOT / "build" / "gpu"
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-G",
        "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    configure += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    packages = os.pathsep.join(path for path in sys.path if path)  # where NVRTC may be
    environment = {
        "CMAKE_CUDA_ARCHITECTURES": f"{capability[0]}{capability[1]}-real",
        "SFPLUS_CUDA": "require",
        "PYTHONPATH": packages,
    }
    status = run.call("configure.txt", configure, 60, **environment)
    if status == 0:
        status = run.call("build.txt", ["ninja", "-C", str(folder)], 240, **environment)
    if status != 0:
        return f"failed with status {status}"
    for made in folder.glob("_C*.so"):
        shutil.copy(made, ROOT / "sfplus_kernels")
    return "done"


def report(run: Run) -> str:
    """Machine, driver, versions, commit."""
    import torch

    sys.path.insert(0, str(ROOT))
    from bench.record.provenance import collect

    about: dict[str, Any] = collect(torch.device(run.device), ("pytest", "pybind11"))
    about |= {"platform": platform.platform(), "cpus": os.cpu_count()}
    (run.out / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    run.call("nvidia-smi.txt", ["nvidia-smi"], 20)
    status = run.call("report.txt", [sys.executable, "-m", "sfplus_kernels"], 60)
    if status != 0:
        return f"failed with status {status}"
    backend = re.search(r"^backend cuda +(.*)$", (run.out / "report.txt").read_text(), re.MULTILINE)
    return f"cuda: {backend[1]}" if backend else "no backend cuda"


def pytest(run: Run, name: str, arguments: list[str], most: float) -> str:
    """Some tests, with their results as ``name``.xml."""
    quiet = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "default", "-rs"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *quiet,
        f"--junitxml={run.out / name}.xml",
        *arguments,
    ]
    status = run.call(f"{name}.txt", command, most)
    last = (run.out / f"{name}.txt").read_text().splitlines()[-1]
    return last.strip("= ") if status in (0, 1) else f"status {status}: {last}"


def tests(run: Run) -> str:
    """The tests marked gpu, the two that want most of the memory by themselves at the end."""
    files = sorted(map(str, (ROOT / "tests" / "backends").glob("test_gpu*.py")))
    return pytest(run, "gpu-tests", ["-m", "gpu", *files], 200)


def suite(run: Run) -> str:
    """The tests of every backend, for cuda and triton, by up to eight processes."""
    many = importlib.util.find_spec("xdist") is not None
    spread = ["-n", str(min(8, os.cpu_count() or 1))] if many else []
    return pytest(run, "suite", [*spread, "-k", "cuda or triton", *SUITE], 240)


def bench(run: Run) -> str:
    """A flat tensor and thousands of small ones, saved after each part."""
    command = [
        sys.executable,
        "-m",
        "bench",
        "--device",
        run.device,
        "--out",
        str(run.out / "bench"),
    ]
    if run.device == "cuda":
        command += ["--workloads", "flat,gpt2-124m,10000x64"]
    else:
        command += ["--quick"]
    chosen = (
        "ScheduleFree+,AdamWScheduleFree cuda,AdamWScheduleFree triton,AdamW cuda,torch AdamW fused"
    )
    command += ["--optimizers", chosen]
    command += ["--seconds", f"{max(1.0, run.left() - 100):.0f}"]
    status = run.call("bench.txt", command, max(1.0, run.left() - 60))
    return "done" if status == 0 else f"status {status}"


def sanitizers(run: Run) -> str:
    """The end of what each tool says. memcheck sees beside a tensor only where torch caches no memory."""
    said = []
    for tool in SANITIZERS:
        program = [sys.executable, str(ROOT / "tools" / "every_kernel.py"), "--few"]
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *program]
        status = run.call(f"{tool}.txt", command, 90, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        said.append(f"{tool} {'clean' if status == 0 else f'status {status}'}")
    return ", ".join(said)


def predictions() -> dict[str, tuple[float, float]]:
    """By pass, from docs/performance.md: expected and least percentage of the measured copy's bandwidth."""
    text = (ROOT / "docs" / "performance.md").read_text()
    rows = re.findall(r"^\| `([\w+ :]+)` \| (\d+) % \| (\d+) % \|", text, re.MULTILINE)
    return {name: (float(expected), float(least)) for name, expected, least in rows}


def verdicts(run: Run) -> str:
    """A table, one row for each prediction: kept, missed, or not measured."""
    path = run.out / "bench" / "results.json"
    measured: dict[str, float] = {}
    if path.exists():
        rows = json.loads(path.read_text())["rows"]
        for row in rows:
            if row["section"] == "pass" and row["percent_of_roofline"]:
                name = row["name"].replace(" cuda:", ":")
                measured[name] = max(measured.get(name, 0.0), row["percent_of_roofline"])
    lines = [
        "| pass | predicted, of the copy's bandwidth | measured | verdict |",
        "|---|---|---|---|",
    ]
    counts = {"as predicted": 0, "missed": 0, "not measured": 0}
    for name, (expected, least) in predictions().items():
        value = measured.get(name)
        verdict = (
            "not measured" if value is None else "as predicted" if value >= least else "missed"
        )
        counts[verdict] += 1
        shown = "" if value is None else f"{value:.0f} %"
        lines.append(f"| {name} | {expected:.0f} %, at least {least:.0f} % | {shown} | {verdict} |")
    (run.out / "verdicts.md").write_text("\n".join(lines) + "\n")
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


IN_ORDER: list[Callable[[Run], str]] = [build, report, tests, suite, bench, sanitizers]
PARTS = {part.__name__: part for part in IN_ORDER}
LEAST = 20.0
"""Seconds that a part is begun with."""


def main() -> None:
    """Run the parts; exit with 1 if one of them failed, or there was no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, in this order")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="for all of them (default: 480)"
    )
    parser.add_argument("--out", type=Path, help="default: gpu-results/DATE")
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU, on the CPU: to see that it runs"
    )
    arguments = parser.parse_args()
    chosen = [name.strip() for name in arguments.parts.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}: expected some of {', '.join(PARTS)}")
    import torch

    if not (torch.cuda.is_available() or arguments.rehearse):
        parser.error("torch finds no CUDA device; --rehearse runs what needs none")
    out = arguments.out or ROOT / "gpu-results" / f"{datetime.now(UTC):%Y-%m-%d}"
    run = Run(out.resolve(), arguments.seconds, "cuda" if torch.cuda.is_available() else "cpu")
    for name in chosen:
        if run.left() < LEAST:
            run.outcomes[name] = "no time left"
        else:
            begin = time.monotonic()
            try:
                run.outcomes[name] = PARTS[name](run)
            except Exception as error:  # the other parts are worth having
                run.outcomes[name] = f"failed: {error!r}"
            run.outcomes[name] += f" ({time.monotonic() - begin:.0f} s)"
        print(f"{name}: {run.outcomes[name]}", flush=True)
        (run.out / "outcomes.json").write_text(json.dumps(run.outcomes, indent=1) + "\n")
    run.outcomes["verdicts"] = verdicts(run)
    (run.out / "outcomes.json").write_text(json.dumps(run.outcomes, indent=1) + "\n")
    print(f"verdicts: {run.outcomes['verdicts']}\n{run.out}")
    bad = ("failed", "status", "no time")
    sys.exit(any(word in said for said in run.outcomes.values() for word in bad))


if __name__ == "__main__":
    main()
