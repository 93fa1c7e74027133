"""Bytes by count: what a step reads and writes, cache or no cache.

Three ways, each where it is right. A kernel of ours reads and writes the arrays that its pass is defined
to (tests/benchmarks/test_bench_traffic.py compares that with what the kernels do); a step made of torch
operations is watched, operation by operation; a fused optimizer of somebody else is one pass over its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfplus_kernels.contract.backend import Backend, Entry
from sfplus_kernels.contract.layout import Move

STATE = ("exp_avg", "exp_avg_sq", "displacement", "master_param")


def arrays(pass_name: str, entry: Entry) -> tuple[list[str], list[str]]:
    """Names of the arrays of ``entry`` that a pass reads and those that it writes.

    Names are the fields of ``Entry``, and "grad". ``pass_name`` is as ``called`` gives it.
    """
    has_master = entry.master_param is not None
    y, e = "master_param" if has_master else "param", "displacement"
    follows = ["param"] if has_master else []  # rounds y, and is read for what was written to it
    state = [name for name in STATE if getattr(entry, name) is not None]
    known = {
        "reduce": (["grad", e], []),
        "reduce gradients": (["grad"], []),
        "finalize": ([], []),  # its buffers do not grow with the model's size
        "update": (["grad", *state, "param"], [*state, "param"]),
        "to_x": ([y, e, *follows], [y, *follows]),
        "to_y": ([y, e, *follows], [y, *follows]),
        "shift": ([y, e, *follows], [y, *follows]),
        "expose_z": ([y, e, *follows], [y, e, *follows]),
        "absorb_z": ([y, e, *follows], [y, e, *follows]),
    }
    if pass_name not in known:
        raise ValueError(f"unknown pass {pass_name!r}: expected one of {', '.join(known)}")
    return known[pass_name]


def called(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a call of a backend's operation does: its name, or that of the move."""
    if name == "interpolate":
        return Move(args[1] if len(args) > 1 else kwargs["move"]).name.lower()
    if name == "reduce" and not kwargs["with_e"]:
        return "reduce gradients"
    return name


def entries_of(plan: Any) -> Sequence[Entry]:
    """The entries of a compiled backend's plan: an address table, or what holds one."""
    entries: Sequence[Entry] = getattr(plan, "table", plan).keep_alive
    return entries


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

    OPERATIONS = ("reduce", "finalize", "update", "interpolate")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.passes: list[str] = []
        self.bytes = 0
        self.plan_of: dict[str, Any] = {}  # the last plan of each operation
        self.call_of: dict[str, partial[Any]] = {}  # and how to do the last one again

    def steps_at_once(self, plan: Any) -> bool:
        """No: the passes are to be met one by one."""
        return False

    def __getattr__(self, name: str) -> Any:
        target = getattr(self.backend, name)
        if name not in self.OPERATIONS:
            return target

        def passing(plan: Any, *args: Any, **kwargs: Any) -> Any:
            pass_name = called(name, args, kwargs)
            self.passes.append(pass_name)
            self.bytes += pass_bytes(pass_name, entries_of(plan))
            self.plan_of[name] = plan
            self.call_of[name] = partial(target, plan, *args, **kwargs)
            return self.call_of[name]()

        return passing


def engine_of(optimizer: Any) -> Any:
    """The engine of an optimizer of this package; a wrapper's is that of its averages."""
    return getattr(optimizer, "_averaging", optimizer)._get_runtime().engine


def record_step(optimizer: Any, step: Callable[[], Any]) -> Recorder:
    """Take one step of an optimizer of this package, on a compiled backend, under a recorder."""
    engine = engine_of(optimizer)
    recorder = Recorder(engine._backend)
    engine._backend = recorder
    try:
        step()
    finally:
        engine._backend = recorder.backend
    return recorder


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
            # a fused step may unscale the gradients, but not without a scale
            changes = changes and not (name.startswith("_fused_") and argument.name == "grads")
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
    averaging = getattr(optimizer, "_averaging", None)  # beside the base's state, in a wrapper
    states = [*optimizer.state.values(), *(averaging.state.values() if averaging else ())]
    return sum(
        value.numel() * value.itemsize
        for state in states
        for value in state.values()
        if isinstance(value, Tensor) and value.dim() > 0
    )
