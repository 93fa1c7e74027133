"""Bytes by count: what a step reads and writes, cache or no cache.

Three ways, each where it is right. A kernel of ours reads and writes the arrays that its pass is defined
to (tests/benchmarks/test_bench_traffic.py compares that with what the kernels do); a step made of torch
operations is watched, operation by operation; a fused optimizer of somebody else is one pass over its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from bench.work.arrays import Arrays
from sfplus_kernels.contract.backend import Backend, Entry
from sfplus_kernels.contract.layout import Move

STATE = ("exp_avg", "exp_avg_sq", "displacement", "master_param", "y_low")


def arrays(pass_name: str, entry: Entry) -> tuple[list[str], list[str]]:
    """Names of the arrays of ``entry`` that a pass reads and those that it writes.

    Names are the fields of ``Entry``, and "grad". ``pass_name`` is as ``called`` gives it.
    """
    e = "displacement"
    y, follows = ["param"], []
    if entry.master_param is not None:
        y, follows = ["master_param"], ["param"]  # rounds y, and is read for what was written to it
    if entry.y_low is not None:
        y = ["param", "y_low"]  # its two halves
    state = [name for name in STATE if getattr(entry, name) is not None]
    moved = ([*y, e, *follows], [*y, *follows])
    with_z = ([*y, e, *follows], [*y, e, *follows])
    known = {
        "reduce": (["grad", e], []),
        "reduce gradients": (["grad"], []),
        "finalize": ([], []),  # its buffers do not grow with the model's size
        "update": (["grad", *state, "param"], [*state, "param"]),
        "to_x": moved,
        "to_y": moved,
        "shift": moved,
        "expose_z": with_z,
        "absorb_z": with_z,
    }
    if entry.y_low is not None:  # the parameter is x from TO_X on, and y's upper half beside it
        known["to_x"] = (["y_high", "y_low", e], ["param"])
        known["to_y"] = (["y_high", "y_low", e, "param"], ["param", "y_low"])
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


def itemsize(name: str, entry: Entry) -> int:
    """Bytes of an element of the array ``name`` of ``entry``."""
    if name == "grad":
        assert entry.grad_dtype is not None
        return entry.grad_dtype.itemsize
    size: int = entry.param.itemsize if name == "y_high" else getattr(entry, name).itemsize
    return size


def pass_arrays(pass_name: str, entry: Entry) -> Arrays:
    """The arrays of ``entry`` that a pass touches, by their widths."""
    read, written = arrays(pass_name, entry)
    return Arrays(
        tuple(itemsize(name, entry) for name in written),
        tuple(itemsize(name, entry) for name in read if name not in written),
    )


def pass_bytes(pass_name: str, entries: Sequence[Entry]) -> tuple[int, int]:
    """Bytes that a pass over ``entries`` moves, and how many of these it reads."""
    moved = bytes_read = 0
    for entry in entries:
        read, written = arrays(pass_name, entry)
        sizes = [entry.param.numel() * itemsize(name, entry) for name in read + written]
        exponents = 0  # of v in 8 bits: one for 32 elements, so no array beside the others
        if entry.exponents is not None and pass_name == "update":
            exponents = entry.exponents.numel() * entry.exponents.itemsize
        moved += sum(sizes) + 2 * exponents
        bytes_read += sum(sizes[: len(read)]) + exponents
    return moved, bytes_read


def largest(entries: Sequence[Entry]) -> Entry:
    """Whose arrays speak for all: where matrices are kept in 8 bits, vectors beside them are in 16."""
    return max(entries, key=lambda entry: entry.param.numel())


class Recorder:
    """A backend that passes everything on to another one, and adds up the bytes of the passes."""

    OPERATIONS = ("reduce", "finalize", "update", "interpolate")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.passes: list[str] = []
        self.arrays: list[Arrays] = []  # of the passes that have any
        self.bytes = self.bytes_read = 0
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
            entries = entries_of(plan)
            moved, read = pass_bytes(pass_name, entries)
            self.bytes += moved
            self.bytes_read += read
            if read:
                self.arrays.append(pass_arrays(pass_name, largest(entries)))
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
        self.bytes = self.bytes_read = 0
        self.operations = 0
        self.arrays: list[
            Arrays
        ] = []  # of the operations on more than single numbers, such as counts

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
        sizes = []
        for tensors in (read, written):  # an operand that is given twice (g * g) is read once
            once = {id(t): t for t in tensors}
            sizes.append(sum(t.numel() * t.itemsize for t in once.values()))
        self.bytes += sum(sizes)
        self.bytes_read += sizes[0]
        changed = {id(t): t for t in written}
        only_read = {id(t): t for t in read if id(t) not in changed}
        arrays = Arrays(*map(_widths, (changed, only_read)))
        if any(arrays):
            self.arrays.append(arrays)
        self.operations += 1
        return out


def _widths(tensors: Mapping[int, Tensor]) -> tuple[int, ...]:
    return tuple(t.itemsize for t in tensors.values() if t.dim() > 0)


def watch_step(step: Callable[[], Any]) -> Watch:
    """Take one step that consists of torch operations, and count what they move."""
    watch = Watch()
    with watch:
        step()
    return watch


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Those that hold memory: within containers, and within tensors that are made of others."""
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from _tensors_in(getattr(value, name))
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors_in(inner)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state that grow with the model: all tensors in it but single numbers."""
    averaging = getattr(optimizer, "_averaging", None)  # beside the base's state, in a wrapper
    states = [*optimizer.state.values(), *(averaging.state.values() if averaging else ())]
    return sum(t.numel() * t.itemsize for t in _tensors_in(states) if t.dim() > 0)
