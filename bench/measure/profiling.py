"""What a step allocates and launches, from torch's profiler and allocator: not timed."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Profile(NamedTuple):
    """Most bytes allocated at one time within a step, and its kernel launches (None on a CPU)."""

    temporary_bytes: int
    launches: int | None


def profile_step(step: Callable[[], Any], device: torch.device) -> Profile:
    """Take one step under the profiler."""
    if device.type == "cuda":  # never run: no GPU was at hand
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kernels = [e for e in _trace(step, ProfilerActivity.CUDA) if e.get("cat") == "kernel"]
        return Profile(torch.cuda.max_memory_allocated(device) - before, len(kernels))
    level = highest = 0
    for event in _trace(step, ProfilerActivity.CPU):
        if event.get("name") == "[memory]":
            level += event["args"]["Bytes"]
            highest = max(highest, level)
    return Profile(highest, None)


def _trace(step: Callable[[], Any], activity: ProfilerActivity) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU to profile
        with profile(activities=[activity], profile_memory=True) as profiler:
            step()
            if activity == ProfilerActivity.CUDA:
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sorted(events, key=lambda event: event.get("ts", 0))
