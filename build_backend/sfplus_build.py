"""The build backend: scikit-build-core's for setuptools, and CUDA's compiler from PyPI.

Only the hooks that name requirements differ. ``MAX_JOBS`` counts as ``CMAKE_BUILD_PARALLEL_LEVEL``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import cuda_toolkit
from scikit_build_core.setuptools import build_meta
from scikit_build_core.setuptools.build_meta import *  # noqa: F403

if "MAX_JOBS" in os.environ:
    os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", os.environ["MAX_JOBS"])


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """As scikit-build-core's, and the CUDA compiler where it is needed."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *cuda_requirements()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """As ``get_requires_for_build_wheel``."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *cuda_requirements()]


def cuda_requirements() -> list[str]:
    """NVRTC from PyPI, unless CUDA_HOME names another compiler.

    ``auto`` first asks whether it can be had: a build without CUDA is better than none. ``require`` does not
    ask, so that the installer says what is missing, unless there is nvcc on PATH to do without.
    """
    wanted = cuda_toolkit.mode(os.environ)
    if wanted == "off" or not cuda_toolkit.supported() or cuda_toolkit.find_toolkit(os.environ):
        return []
    on_path = cuda_toolkit.find_compiler(os.environ) is not None
    if (on_path or wanted == "auto") and not can_be_had(cuda_toolkit.REQUIREMENTS):
        if not on_path:
            print(
                "WARNING: no nvcc in CUDA_HOME or on PATH, and the package index has no NVRTC: building "
                "WITHOUT CUDA KERNELS. SFPLUS_CUDA=off says that this is meant, SFPLUS_CUDA=require makes it "
                "an error.",
                file=sys.stderr,
            )
        return []
    return list(cuda_toolkit.REQUIREMENTS)


def can_be_had(requirements: list[str]) -> bool:
    """Whether pip, with this machine's configuration, finds all of them. True where there is no pip to
    ask."""
    # installers hide the environment's packages, pip among them, from a backend
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    pip = [sys.executable, "-m", "pip"]
    try:
        asked = subprocess.run(
            [*pip, "--version"], env=environment, capture_output=True, timeout=60
        )
        if asked.returncode != 0:
            return True
        dry_run = ["install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
        answer = subprocess.run(
            [*pip, *dry_run, *requirements], env=environment, capture_output=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0
