"""Bytes by count: what a step reads and writes, cache or no cache.

Three ways, each where it is right. A kernel of ours reads and writes the arrays that its pass is defined
to (tests/test_bench_traffic.py compares that with what the kernels do); a step made of torch operations is
watched, operation by operation; a fused optimizer of somebody else is one pass over its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfplus_kernels.backends.contract import Backend, Entry, RunState

STATE = ("exp_avg", "exp_avg_sq", "displacement", "master_param")


def arrays(pass_name: str, entry: Entry) -> tuple[list[str], list[str]]:
    """Names of the arrays of ``entry`` that a pass reads and those that it writes.

    Names are the fields of ``Entry``, and "grad". With a master_param the parameter is only written.
    """
    state = [name for name in STATE if getattr(entry, name) is not None]
    y = [] if entry.master_param is not None else ["param"]
    if pass_name == "reduce":
        return ["grad", "displacement"], []
    if pass_name == "update":
        return ["grad", *state, *y], [*state, "param"]
    if pass_name == "interpolate":
        if entry.master_param is not None:
            return ["displacement", "master_param"], ["param"]
        return ["displacement", "param"], ["param"]
    if pass_name == "finalize":
        return [], []  # its buffers do not grow with the model's size
    raise ValueError(
        f"unknown pass {pass_name!r}: expected reduce, finalize, update or interpolate"
    )


def pass_bytes(pass_name: str, entries: Sequence[Entry]) -> int:
    """Bytes that a pass over ``entries`` moves."""
    total = 0
    for entry in entries:
        read, written = arrays(pass_name, entry)
        for name in read + written:
            if name == "grad":
                assert entry.grad_dtype is not None
                itemsize = entry.grad_dtype.itemsize
            else:
                itemsize = getattr(entry, name).itemsize
            total += entry.param.numel() * itemsize
    return total


class Recorder:
    """A backend that passes everything on to another one, and adds up the bytes of the passes."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.entries: dict[int, Sequence[Entry]] = {}  # by the id of the plan
        self.plans: list[Any] = []  # kept alive: an id may not come twice
        self.passes: list[str] = []
        self.bytes = 0

    def plan(self, entries: Sequence[Entry], device: torch.device) -> Any:
        plan = self.backend.plan(entries, device)
        self.plans.append(plan)
        self.entries[id(plan)] = list(entries)
        return plan

    def __getattr__(self, name: str) -> Any:
        target = getattr(self.backend, name)
        if name not in ("reduce", "finalize", "update", "interpolate"):
            return target

        def passing(plan: Any, *args: Any, **kwargs: Any) -> None:
            self.passes.append(name)
            self.bytes += pass_bytes(name, self.entries[id(plan)])
            target(plan, *args, **kwargs)

        return passing


def record_step(optimizer: Any, step: Callable[[], Any]) -> Recorder:
    """Take one step of an optimizer of this package under a recorder, with a plan of its own."""
    engine = optimizer._get_engine()
    recorder = Recorder(engine._backend)
    optimizer._step_plan = None  # else the plan of an earlier step would go by unseen
    engine._backend = recorder
    try:
        step()
    finally:
        engine._backend = recorder.backend
    return recorder


def run_of(optimizer: Any) -> RunState:
    """The run state of an optimizer of this package."""
    run: RunState = optimizer._get_engine().run
    return run


class Watch(TorchDispatchMode):
    """Adds up the bytes of the arrays that each torch operation reads and writes."""

    ALLOCATE = ("empty", "new_empty", "detach", "alias", "_reinterpret", "lift_fresh")
    OVERWRITE = ("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        schema = func._schema
        name = schema.name.partition("::")[2]
        if func.is_view or name.startswith(self.ALLOCATE):
            return out
        written: list[Tensor] = []
        read: list[Tensor] = []
        for index, argument in enumerate(schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
            changes = argument.alias_info is not None and argument.alias_info.is_write
            if changes:
                written += tensors
            if not (changes and (argument.is_out or name in self.OVERWRITE)):
                read += tensors
        written += [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensors in (read, written):  # an operand that is given twice (g * g) is read once
            self.bytes += sum(t.numel() * t.itemsize for t in {id(t): t for t in tensors}.values())
        self.operations += 1
        return out


def watch_step(step: Callable[[], Any]) -> Watch:
    """Take one step that consists of torch operations, and count what they move."""
    watch = Watch()
    with watch:
        step()
    return watch


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state that grow with the model: all tensors in it but single numbers."""
    return sum(
        value.numel() * value.itemsize
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim() > 0
    )
