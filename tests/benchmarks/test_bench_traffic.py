"""The benchmarks' byte counts, against what the kernels read and write."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from support import assert_same_bits
from torch.testing._internal.two_tensor import TwoTensor

from bench.contestants.all import contestants
from bench.contestants.contestant import Contestant, driver
from bench.contestants.family import FAMILY, of_family
from bench.measure.check import STEPS, check, describe
from bench.measure.passes import passes
from bench.work import traffic
from bench.work.arrays import Arrays
from bench.work.workloads import make_params, suite
from sfplus_kernels.contract.layout import Move, TensorCoef

CPU = torch.device("cpu")
SHAPES: list[tuple[int, ...]] = [(257,), (64, 33), (20_000,)]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
]
ARRAYS = ("param", "grad", *traffic.STATE, "y_high")
MOVES = [move.name.lower() for move in Move]
KINDS = [f for f in FAMILY if f.main or f.class_name == "SGD"]
COMPILED = [c for f in KINDS for c in of_family(f, CPU) if c.name.endswith(" cpu")]
(HALF,) = [c for c in of_family(FAMILY[0], CPU) if c.name.endswith(" 16bit")]


def pass_of(contestant: Contestant, name: str, params: list) -> Any:
    """The pass, its entries and the run state: two steps in, so that no buffer is zero."""
    optimizer: Any
    optimizer, step = contestant.make(params)
    step()
    recorder = traffic.record_step(optimizer, step)
    backend, plan = recorder.backend, recorder.plan_of["update"]
    run, partials = traffic.engine_of(optimizer).run, plan.table.partials
    run.tensor_coefs[:, TensorCoef.E_TO_Y] = 0.5  # what a shift takes
    if name == "to_y":  # from x
        backend.interpolate(plan, run, Move.TO_X)
    passes: dict[str, Any] = dict(recorder.call_of)
    if "reduce" in passes:
        passes["reduce gradients"] = partial(passes["reduce"], with_e=False)
    for move in Move:
        passes[move.name.lower()] = lambda move=move: backend.interpolate(plan, run, move)
    return passes[name], traffic.entries_of(plan), partials


def tensors_of(entry: Any) -> dict[str, torch.Tensor]:
    values = {name: getattr(entry, name, None) for name in ARRAYS if name != "grad"}
    values["grad"] = entry.param.grad
    if entry.y_low is not None:
        values["y_low"] = entry.y_low.view(torch.int16)  # bits, which may be those of a NaN
    return {name: t.detach() for name, t in values.items() if t is not None}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    ("contestant", "name"),
    [
        *((COMPILED[0], name) for name in ("reduce", "reduce gradients", *MOVES)),
        *((HALF, name) for name in ("reduce", "update")),
        *((contestant, "update") for contestant in COMPILED),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_counted_arrays_are_those_that_the_kernel_touches(
    contestant: Contestant, name: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """An array is written if a pass changes it, and read if changing it changes what the pass leaves."""
    params = make_params(SHAPES, CPU, *dtypes)
    one, entries, partials = pass_of(contestant, name, params)
    entry = entries[-1]
    tensors = tensors_of(entry)
    start = {key: t.clone() for key, t in tensors.items()}

    def result() -> dict[str, torch.Tensor]:
        partials.zero_()
        one()
        left = {key: t.clone() for key, t in tensors.items()} | {"sums": partials.clone()}
        for key, t in tensors.items():
            t.copy_(start[key])
        return left

    plain = result()
    written = {key for key in tensors if not torch.equal(plain[key], start[key])}
    read = set()
    for key, tensor in tensors.items():
        other = tensor.mul_(2).clone()
        changed = result()
        if not torch.equal(changed[key], other):  # what is written again as it was, too
            written.add(key)
        if any(not torch.equal(changed[k], plain[k]) for k in plain if k != key or k in written):
            read.add(key)
    counted = traffic.arrays(name, entry)
    assert (set(counted[0]), set(counted[1])) == (read, written)


def test_bytes_of_a_pass_are_those_of_its_arrays() -> None:
    params = make_params([(1000,)], CPU, torch.bfloat16, torch.bfloat16)
    plus = COMPILED[0]
    _, entries, _ = pass_of(plus, "update", params)
    # float32 e, m, v and master read and written, bfloat16 gradient read, bfloat16 parameter written
    read, written = 4 * 4 + 2 + 2, 4 * 4 + 2
    assert traffic.pass_bytes("update", entries) == (1000 * (read + written), 1000 * read)
    assert traffic.pass_bytes("reduce", entries) == (1000 * (4 + 2), 1000 * (4 + 2))
    assert traffic.pass_bytes("finalize", entries) == (0, 0)
    assert traffic.pass_arrays("update", entries[0]) == Arrays((4, 4, 4, 4, 2), (2,))
    assert traffic.pass_arrays("reduce", entries[0]) == Arrays((), (2, 4))
    with pytest.raises(ValueError, match="unknown pass 'swap'"):
        traffic.pass_bytes("swap", entries)


@pytest.mark.parametrize(
    ("name", "bytes_per_param", "state_per_param"),
    [
        ("ScheduleFree+ cpu", 44, 12),
        ("AdamWScheduleFree cpu", 28, 8),
        ("SGDScheduleFree cpu", 20, 4),
        ("RAdamScheduleFree cpu", 28, 8),
        ("AdamWScheduleFreeClosure cpu", 40, 8),
        ("ScheduleFreeWrapper(SGD) cpu", 44, 4),  # 32 of its own, 12 of the base
        ("AdamW cpu", 28, 8),
        ("AdamC cpu", 28, 8),
        ("SGD cpu", 20, 4),
        ("torch SGD fused", 20, 4),
        ("torch AdamW fused", 28, 8),
        ("torch AdamW foreach", 80, 8),
        ("AdamWScheduleFree upstream", 104, 8),
        ("SGDScheduleFree upstream", 48, 4),
    ],
)
def test_bytes_of_a_step(name: str, bytes_per_param: int, state_per_param: int) -> None:
    """The documented ones of our steps; those of torch's and upstream's, counted by hand."""
    (contestant,) = [c for c in contestants(CPU) if c.name == name]
    checked = check(contestant, CPU, torch.float32, torch.float32)
    assert (checked.status, checked.reason) == ("ok", "")
    assert checked.bytes_per_param == bytes_per_param
    assert checked.state_per_param == state_per_param


PASSES = {
    "ScheduleFree+ cpu": [Arrays(read=(4, 4)), Arrays((4, 4, 4, 4), (4,))],
    "AdamWScheduleFree cpu": [Arrays((4, 4, 4), (4,))],
    "SGDScheduleFree cpu 16bit": [Arrays((2, 4), (4,))],
    "torch AdamW fused": [Arrays((4, 4, 4), (4,))],
    "torch SGD fused": [Arrays((4, 4), (4,))],
    "torch AdamW foreach": [],  # of many operations
    "ScheduleFreeWrapper(SGD) cpu": [],  # operations of torch beside the passes
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_of_a_step(name: str) -> None:
    (contestant,) = [c for c in contestants(CPU) if c.name == name]
    checked = check(contestant, CPU, torch.float32, torch.float32)
    assert [Arrays(*map(tuple, map(sorted, a))) for a in checked.passes] == PASSES[name]
    if len(checked.passes) == 1:
        assert checked.bytes_per_param == checked.passes[0].bytes_per_element
        assert checked.read_per_param == checked.passes[0].bytes_read


@pytest.mark.parametrize(
    ("name", "dtypes", "update", "moved"),
    [
        ("ScheduleFree+", DTYPES[0], Arrays((2, 2, 2, 4), (4,)), 6 + 24),
        ("ScheduleFree+", DTYPES[2], Arrays((2, 2, 2, 4), (2,)), 4 + 22),
        ("ScheduleFree+", DTYPES[1], Arrays((2, 2, 2, 2, 2), (2,)), 4 + 22),
        ("AdamW", DTYPES[0], Arrays((2, 2, 4), (4,)), 20),
        ("AdamW", DTYPES[1], Arrays((2, 2, 2, 2), (2,)), 18),
    ],
)
def test_bytes_of_state_of_16_bits(name: str, dtypes: Any, update: Arrays, moved: int) -> None:
    (contestant,) = [c for c in contestants(CPU) if c.name == f"{name} cpu 16bit"]
    checked = check(contestant, CPU, *dtypes)
    assert (checked.status, checked.reason) == ("ok", "")
    assert checked.bytes_per_param == moved
    assert Arrays(tuple(sorted(checked.passes[-1].changed)), checked.passes[-1].read) == update


@pytest.mark.parametrize(
    ("name", "dtypes", "update", "bytes_"),
    [
        ("ScheduleFree+", DTYPES[0], Arrays((1, 1, 2, 4), (4,)), (26, 18, 4)),
        ("ScheduleFree+", DTYPES[2], Arrays((1, 1, 2, 4), (2,)), (22, 14, 4)),
        ("ScheduleFree+", DTYPES[1], Arrays((1, 1, 1, 2, 2), (2,)), (20, 13, 5)),
        ("AdamWScheduleFree", DTYPES[0], Arrays((1, 2, 4), (4,)), (18, 11, 3)),
        ("AdamW", DTYPES[0], Arrays((1, 1, 4), (4,)), (16, 10, 2)),
        ("AdamW", DTYPES[1], Arrays((1, 1, 1, 2), (2,)), (12, 7, 3)),
    ],
)
def test_bytes_of_state_of_8_bits(
    name: str, dtypes: Any, update: Arrays, bytes_: tuple[int, int, int]
) -> None:
    """With an exponent for 32 elements, which is read and written."""
    (contestant,) = [c for c in contestants(CPU) if c.name == f"{name} cpu 8bit"]
    checked = check(contestant, CPU, *dtypes)
    assert (checked.status, checked.reason) == ("ok", "")
    found = (checked.bytes_per_param, checked.read_per_param, checked.state_per_param)
    assert found == (bytes_[0] + 2 / 32, bytes_[1] + 1 / 32, bytes_[2] + 1 / 32)
    assert Arrays(tuple(sorted(checked.passes[-1].changed)), checked.passes[-1].read) == update


def test_8_bits_are_for_matrices() -> None:
    """Of others nothing is kept in so few."""
    of_matrices = {w.name for w in suite("cpu", False) if w.of_matrices}
    assert {"gpt2-blocks", "llama-1b-block", "moe-block", "bf16"} <= of_matrices
    assert not {"flat", "1000x1024", "odd"} & of_matrices
    (contestant,) = [c for c in contestants(CPU) if c.name == "ScheduleFree+ cpu 8bit"]
    for workload in suite("cpu", False):
        assert not contestant.is_in(workload) or workload.of_matrices


def test_watched_operations() -> None:
    a, b, out = torch.ones(100), torch.ones(100), torch.ones(100)

    def moved(operation: Any) -> float:
        return traffic.watch_step(operation).bytes / 400

    assert moved(lambda: a + b) == 3
    assert moved(lambda: a * a) == 2  # one operand given twice
    assert moved(lambda: a.add_(b)) == 3
    assert moved(lambda: out.copy_(a)) == 2
    assert moved(lambda: torch.add(a, b, out=out)) == 3
    assert moved(lambda: a.zero_()) == 1
    assert moved(lambda: torch._foreach_mul_([a, b], 2.0)) == 4
    assert moved(lambda: a.view(10, 10)[2:].t()) == 0
    assert moved(lambda: torch.empty_like(a)) == 0


def test_recording_a_step_changes_nothing() -> None:
    plain, recorded = make_params(SHAPES), make_params(SHAPES)
    plus = COMPILED[0]
    _, step = plus.make(plain)
    optimizer, other = plus.make(recorded)
    step()
    step()
    other()
    recorder = traffic.record_step(optimizer, other)
    assert recorder.passes == ["reduce", "finalize", "update"]
    assert_same_bits([p.detach() for p in plain], [p.detach() for p in recorded])


def test_what_is_wrong_is_not_timed() -> None:
    plus, adamw = COMPILED[0], COMPILED[1]
    wrong = check(replace(plus, oracle=adamw.oracle), CPU, torch.float32, torch.float32)
    assert wrong.status == "wrong"
    assert "of the way; expected at most 0.001" in wrong.reason
    assert STEPS > 1

    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise RuntimeError("no kernel image")

    broken = replace(adamw, make=driver(Broken, {}))
    failed = check(broken, CPU, torch.float32, torch.float32)
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: no kernel image")
    nested = RuntimeError("backend='inductor' raised:\n\n  ImportError: no compiler\nmore")
    assert describe(nested) == "RuntimeError: backend='inductor' raised: ImportError: no compiler"


def test_passes_alone_repeat() -> None:
    found = {p.name: p for p in passes(COMPILED[0], make_params(SHAPES))}
    assert list(found) == ["reduce", "finalize", "update", "interpolate"]
    n = sum(torch.Size(shape).numel() for shape in SHAPES)
    assert [p.traffic // n for p in found.values()] == [8, 0, 36, 12]
    for p in found.values():
        p.run()
        p.run()
    assert next(passes(COMPILED[1], make_params(SHAPES))).name == "finalize"


def test_passes_of_what_averages_nothing() -> None:
    """y is all that there is: no pass moves it."""
    names = ("AdamW cpu", "AdamC cpu", "SGD cpu")
    plain = [c for family in FAMILY for c in of_family(family, CPU) if c.name in names]
    assert len(plain) == 3
    n = sum(torch.Size(shape).numel() for shape in SHAPES)
    for contestant in plain:
        found = {p.name: p for p in passes(contestant, make_params(SHAPES))}
        assert list(found) == ["finalize", "update"]
        found["update"].run()
        assert found["update"].traffic == (20 if contestant.name == "SGD cpu" else 28) * n


def test_state_within_containers_and_tensors_made_of_others_is_counted() -> None:
    """As other packages keep it: a list for each parameter, or codes and scales in one tensor."""
    param = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = torch.optim.SGD([param], lr=0.1)
    pair = TwoTensor(torch.zeros(8, 4), torch.zeros(8, 4))
    optimizer.state[param] = {
        "step": torch.zeros(()),
        0: {"exp_avg": [torch.zeros(8, 4)]},
        "pair": pair,
    }
    assert traffic.state_bytes(optimizer) == 3 * 8 * 4 * 4
