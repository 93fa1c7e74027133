"""Every CUDA kernel once, on tensors at odd addresses with guards around them. For compute-sanitizer.

    python tools/every_kernel.py [--few] [--host]

With PYTORCH_NO_CUDA_MEMORY_CACHING=1 a sanitizer sees what is beside a tensor too. ``--few`` is for one: each
kernel about once, with a third of the launches and of the tensors. ``--host`` takes the kernels as the
tests compile them for the host. PYTHONPATH has the repository. State in 16 and 8 bits is not in it.
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.layout import Hyper, Move, Rule, Setting

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 3, 4, 5, 7, 8, 31, 127, 128, 129, 255, 511, 512, 513, 1025, 2050]
FEW_SIZES = [5, 129, 2050]
"""An end alone, an end behind whole vectors, several chunks."""
GUARD = 7.25
PLAIN = ("mv", "m", "")
"""What is kept where nothing is averaged."""
PLAIN_PAIRS = [
    (torch.float64, torch.float64),
    *itertools.product([torch.float32, torch.bfloat16], [torch.float32, torch.bfloat16]),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
]
"""Dtypes of parameter and gradient that such an update has a kernel for; other gradients are converted."""

Kind = tuple[torch.dtype, torch.dtype, str]


def kinds(few: bool) -> list[Kind]:
    """Dtypes of parameter and gradient, and which of m, v and e are kept; with ``few`` no kernel twice."""
    found = list(itertools.product(DTYPES, DTYPES, ("mve", "ve", "e", *PLAIN)))
    return [kind for kind in found if not few or "e" in kind[2] or kind[:2] in PLAIN_PAIRS]


class Memory:
    """Tensors with guards around them, each at an odd address now and then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: list[tuple[Tensor, int, int]] = []

    def tensor(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Of positive numbers."""
        offset = 32 + random.choice([0, 0, 0, 1, 2, 3])
        buffer = torch.full((numel + 96,), GUARD, dtype=dtype)
        buffer[offset : offset + numel] = torch.rand(numel, dtype=torch.float64).to(dtype) + 0.1
        buffer = buffer.to(self._device)
        self._made.append((buffer, offset, numel))
        return buffer[offset : offset + numel]

    def touched(self) -> int:
        """How many tensors have a neighbourhood that is not as it was."""
        around = (torch.cat([b[:at], b[at + numel :]]) for b, at, numel in self._made)
        return sum(not bool((guards == GUARD).all()) for guards in around)


def run_state(rule: Rule, n_tensors: int, device: torch.device) -> RunState:
    """Of two groups, before a step whose loss is 1."""
    run = RunState.zeros(2, n_tensors, device)
    hyper = {
        Hyper.LR: 0.1,
        Hyper.SF_BETA1: 0.9,
        Hyper.BETA1: 0.9,
        Hyper.BETA2: 0.95,
        Hyper.EPS: 1e-8,
    }
    for column, value in {**hyper, Hyper.WEIGHT_DECAY: 0.01, Hyper.WEIGHT_LR_POWER: 2}.items():
        run.hyper[:, column] = value
    settings = {Setting.RULE: rule, Setting.POLYAK_BETA: 0.5, Setting.GRAD_SIGN: 1}
    for setting, value in settings.items():
        run.settings[setting] = value
    run.globals[0] = 1.0
    return run


def one_case(
    backend: Any,
    device: torch.device,
    param: torch.dtype,
    grad: torch.dtype,
    buffers: str,
    few: bool,
) -> int:
    """All passes over tensors of one kind; returns how many guards were touched.

    Args:
        buffers: those that are kept, of "m", "v" and "e".
    """
    state = torch.float64 if param == torch.float64 else torch.float32
    memory = Memory(device)
    entries, gradients = [], []
    for slot, numel in enumerate(FEW_SIZES if few else SIZES):
        m, v, e = (memory.tensor(numel, state) if name in buffers else None for name in "mve")
        y = memory.tensor(numel, state) if param != state else None
        p = memory.tensor(numel, param)
        gradients.append(memory.tensor(numel, grad))
        entries.append(Entry(p, m, v, e, y, slot % 2, slot, grad))
    plan = backend.plan(entries, device, chunk_size=512)
    backend.set_gradients(plan, gradients)
    averages = "e" in buffers
    given_rule = Rule.MOMENTUM if buffers == "m" else Rule.GIVEN_LR
    run = run_state(Rule.POLYAK if averages else given_rule, len(entries), device)
    # the passes one by one, then what a step in one process is, with sums and without
    first = param == grad and buffers == "mve"
    one_by_one = first or not few
    if one_by_one:
        backend.finalize(plan, run, backend.reduce(plan, with_e=averages))
        backend.update(plan, run)
    loss = torch.ones((), dtype=grad, device=device)
    backend.step(plan, run, sums=True, with_e=few and buffers == "mve", loss=loss)
    given = run_state(given_rule, len(entries), device)
    backend.step(plan, given, sums=False, with_e=False, loss=None)
    for move in Move if averages and one_by_one else ():
        backend.interpolate(plan, run, move)
    assert float(run.groups[0, 0]) == 1 + one_by_one, "a step was skipped"
    assert float(given.groups[0, 0]) == 1, "a step was skipped"
    assert plan.table.tickets.tolist() == [0, 0, 0]
    return memory.touched()


def main() -> None:
    """Print the number of cases and of guards that were touched; exit with 1 if there are any."""
    few, host = "--few" in sys.argv, "--host" in sys.argv
    device = torch.device("cpu" if host else "cuda:0")
    backend: Any
    if host:
        tests = Path(__file__).parents[1] / "tests"
        sys.path[:0] = [str(tests), str(tests / "backends")]
        from cuda_on_host import CudaOnHost

        backend = CudaOnHost()
    else:
        from sfplus_kernels.backends.registry import select

        backend = select("cuda", device)[1]
    random.seed(0)
    cases = kinds(few)
    touched = sum(one_case(backend, device, *kind, few) for kind in cases)
    print(f"{len(cases)} cases, guards touched: {touched}")
    sys.exit(touched != 0)


if __name__ == "__main__":
    main()
