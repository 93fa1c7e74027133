"""A step as torch.compile sees it: what the host does outside of the graph, the passes as one operator.

    sfplus_kernels::step(params, gradients, state, run, settings, ...)

reduces, finalizes and updates, and declares what it writes. A compiler may give it the optimizer's tensors,
or copies of them that it writes back afterwards: the operator works on those that it is given. In eager
mode it is not called: with 5,000 tensors such a call costs half a millisecond to two.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import torch
from torch import Tensor

from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.formats import FIELDS
from sfplus_kernels.engine.engine import Passes
from sfplus_kernels.engine.runtime import HeldStep, Runtime
from sfplus_kernels.processes.collective import Collective

MAX_TENSORS = 2048
"""A step of more tensors (parameters and their state) stays outside of the graph: the time to compile one
grows faster than their number."""

MAX_KINDS = 4
"""A step with yet another set of parameters that have a gradient stays outside of the graph. Where the set
changes at each step (experts that got no token), each step would be compiled anew."""

NAMES = tuple(dict.fromkeys(FIELDS.values()))
"""What an ``Entry`` may have beside the parameter."""

WRITTEN = ("globals", "groups", "tensors", "group_coefs", "tensor_coefs")
READ = ("hyper", "settings")


@dataclasses.dataclass
class Operands:
    """The tensors of a plan as the operator takes them."""

    params: list[Tensor]  # without requires_grad: there is nothing to differentiate
    state: list[Tensor]  # of each parameter in turn those of NAMES that it has
    run: list[Tensor]  # those of the engine named in WRITTEN
    settings: list[Tensor]  # those named in READ
    traceable: bool  # whether the operator is to be called at all
    given: list[int] = dataclasses.field(default_factory=list)  # identities, as begin() gave them


@dataclasses.dataclass(eq=False)
class Traced:
    """What is remembered of an optimizer, and of its step that began last."""

    number: int  # by which the operator finds it
    kinds: set[tuple] = dataclasses.field(default_factory=set)  # of the steps that are in a graph
    # a weak one: what the optimizer forgets is not to live on here
    runtime: ref[Runtime] | None = None
    collective: Collective | None = None


class Holding(Protocol):
    """An optimizer, as far as it matters here."""

    def hold_back(
        self, step: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> tuple[list[HeldStep], Any]:
        """Call ``step`` without its passes, if that can be: they are left, with what it returned."""


class Result:
    """What a step returned; in a box, for a float that the compiler sees may be compiled in."""

    def __init__(self, value: Any) -> None:
        self.value = value


_traced: WeakKeyDictionary[Holding, Traced] = WeakKeyDictionary()
_by_number: WeakValueDictionary[int, Traced] = WeakValueDictionary()
_numbers = itertools.count()


def traced_step(
    step: Callable[..., Any], optimizer: Holding, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """``step`` of ``optimizer``, where torch.compile traces it. The operator has a graph of its own."""
    calls, result = begin(step, optimizer, args, kwargs)
    for call in calls:
        torch.ops.sfplus_kernels.step(*call)
    return value_of(result)


# -- outside of the graph ---------------------------------------------------------------------------


@torch.compiler.disable
def outside(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call a function."""
    return function(*args, **kwargs)


@torch.compiler.disable
def value_of(result: Result) -> Any:
    """What is in the box."""
    return result.value


@torch.compiler.disable
def begin(
    step: Callable[..., Any], optimizer: Holding, args: tuple, kwargs: dict[str, Any]
) -> tuple[list[tuple], Result]:
    """``step`` but for its passes; the calls of the operator that do the rest, and what it returned."""
    held, value = optimizer.hold_back(step, args, kwargs)
    return [call for one in held for call in _calls(optimizer, one)], Result(value)


def _calls(optimizer: Holding, held: HeldStep) -> list[tuple]:
    """Arguments of the operator that runs these passes; none if it is not to: then they have been run."""
    runtime, passes, gradients = held
    kept = runtime.kept
    assert kept is not None
    if optimizer not in _traced:
        _traced[optimizer] = traced = Traced(next(_numbers))
        _by_number[traced.number] = traced
    traced = _traced[optimizer]
    traced.runtime, traced.collective = ref(runtime), passes.collective
    if kept.operands is None:
        kept.operands = _operands(runtime.engine.run, kept.entries, traced.kinds)
    operands = kept.operands
    assert isinstance(operands, Operands)
    if not operands.traceable or runtime.shifts_idle:
        runtime.run_passes(passes)
        return []
    gradients = [g.detach() if g.requires_grad else g for g in gradients]
    tensors = (operands.params, gradients, operands.state, operands.run, operands.settings)
    operands.given = _identities(tensors)
    flags = (passes.sums, passes.with_e, passes.collective is not None, passes.has_gradient)
    return [(*tensors, traced.number, *flags)]


def _operands(run: RunState, entries: Sequence[Entry], kinds: set[tuple]) -> Operands:
    params = [entry.param.detach() for entry in entries]
    buffers = [getattr(entry, name) for entry in entries for name in NAMES]
    state = [buffer for buffer in buffers if buffer is not None]
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*params, *state) if tensor.numel()]
    # torch 2.6 is wrong about operators that write to several views of one piece of memory
    traceable = len(memory) <= MAX_TENSORS and len(memory) == len(set(memory))
    kind = tuple((entry.slot, entry.grad_dtype) for entry in entries)
    traceable = traceable and (kind in kinds or len(kinds) < MAX_KINDS)
    if traceable:
        kinds.add(kind)
    written, read = ([getattr(run, name) for name in names] for names in (WRITTEN, READ))
    return Operands(params, state, written, read, traceable)


def _identities(tensors: Sequence[Sequence[Tensor]]) -> list[int]:
    return [id(tensor) for some in tensors for tensor in some]


# -- the operator -----------------------------------------------------------------------------------


def _step(
    params: list[Tensor],
    gradients: list[Tensor],
    state: list[Tensor],
    run: list[Tensor],
    settings: list[Tensor],
    optimizer: int,
    sums: bool,
    with_e: bool,
    shared: bool,
    has_gradient: bool,
) -> None:
    """The passes that are left of the step that ``begin`` began."""
    traced = _by_number[optimizer]
    runtime = None if traced.runtime is None else traced.runtime()
    assert runtime is not None
    kept, engine = runtime.kept, runtime.engine
    assert kept is not None
    assert isinstance(kept.operands, Operands)
    passes = Passes(sums, with_e, traced.collective if shared else None, has_gradient)
    if kept.operands.given == _identities((params, gradients, state, run, settings)):
        runtime.run_passes(passes)
        return
    # copies, which get a plan for this one call
    buffers = iter(state)
    entries = []
    for entry, param in zip(kept.entries, params, strict=True):
        given: dict[str, Any] = {n: next(buffers) for n in NAMES if getattr(entry, n) is not None}
        entries.append(entry._replace(param=param.detach(), **given))
    names = (*WRITTEN, *READ)
    copy = RunState(**dict(zip(names, (*run, *settings), strict=True)))
    plan = engine.plan(entries, watched=runtime.watches)
    engine.set_gradients(plan, gradients, moved=True)
    engine.run_passes(plan, copy, passes)
    if runtime.watches:
        runtime.drift_of_copies = engine.drift(plan)


def _fake_step(*arguments: Any) -> None:
    """For shapes: there is no result, and no tensor changes its own."""


LIBRARY = torch.library.Library("sfplus_kernels", "DEF")
LIBRARY.define(
    "step(Tensor(a!)[] params, Tensor[] gradients, Tensor(b!)[] state, Tensor(c!)[] run, "
    "Tensor[] settings, int optimizer, bool sums, bool with_e, bool shared, bool has_gradient) -> ()",
    # A replay would find gradients where begin() saw them, and not where the graph puts its inputs.
    # torch 2.6 has no such tag.
    tags=[
        getattr(torch.Tag, name)
        for name in ("pt2_compliant_tag", "cudagraph_unsafe")
        if hasattr(torch.Tag, name)
    ],
)
LIBRARY.impl("step", _step, "CompositeExplicitAutograd")
torch.library.register_fake("sfplus_kernels::step", _fake_step, lib=LIBRARY)
