"""A parameter with state of 8 bits (``Format.QUARTER``), and what the reference makes of it in an update."""

from typing import Any

import torch
from half_entries import CPU, at, make_run, values
from torch import Tensor

from sfplus_kernels.backends import sixteen_bits
from sfplus_kernels.contract.backend import Entry, RunState
from sfplus_kernels.contract.layout import GroupCoef, TensorCoef
from sfplus_kernels.reference import state_in_8_bits as reference


def make_entry(
    dtype: torch.dtype,
    numel: int = 1024,
    *,
    kept: str = "mve",
    grad_dtype: torch.dtype | None = torch.float32,
    offset: int = 0,
    part: tuple[int, int, int] | None = None,
    seed: int = 0,
    slot: int = 1,
) -> Entry:
    """One parameter in train mode: v of all sizes, zeros and blocks of zeros among them; m up to its bound
    and above."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 2**32, (numel,), generator=generator)
    y = values(numel, generator)
    param, low = (y, None) if dtype == torch.float32 else reference.parts_of_y(y, words)
    v = values(numel, generator).square()
    v[::37] = 0
    v[64:96] = 0
    v[96:128] *= 1e-30
    v[130:131] = 1e30  # with neighbours 2^100 times smaller
    codes, exponents = reference.stored_exp_avg_sq(v, words)
    stored = reference.exp_avg_sq_of(codes, exponents)
    m = reference.stored_exp_avg(values(numel, generator, 8.0) * stored.sqrt(), stored, words)
    has_v = "v" in kept
    return Entry(
        param=at(param, offset),
        exp_avg=at(m, offset) if "m" in kept else None,
        exp_avg_sq=at(codes, offset) if has_v else None,
        displacement=at(values(numel, generator, 3.0).half(), offset) if "e" in kept else None,
        master_param=None,
        group=0,
        slot=slot,
        grad_dtype=grad_dtype,
        y_low=None if low is None else at(low, offset),
        part=part,
        exponents=at(exponents, offset) if has_v else None,
    )


def buffers(entry: Entry) -> list[Tensor]:
    tensors = (entry.param, entry.y_low, entry.exp_avg_sq, entry.exponents, entry.exp_avg)
    return [t.clone() for t in (*tensors, entry.displacement) if t is not None]


def gradients(entries: list[Entry]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    grads = []
    for entry in entries:
        grad = values(entry.param.numel(), generator)
        grad[64:96] = 0
        grads.append(grad.to(entry.grad_dtype))
    return grads


def updated(
    backend: Any,
    entries: list[Entry],
    run: RunState | None = None,
    grads: list[Tensor] | None = None,
) -> list[Tensor]:
    plan = backend.plan(entries, CPU)
    grads = gradients(entries) if grads is None else grads  # which the plan only points at
    backend.set_gradients(plan, grads)
    backend.update(plan, make_run(len(entries) + 1) if run is None else run)
    return [tensor for entry in entries for tensor in buffers(entry)]


def expected(
    entries: list[Entry], run: RunState | None = None, grads: list[Tensor] | None = None
) -> list[Tensor]:
    """What ``updated`` is to find: docs/algorithm.md in float32, and the reference's roundings."""
    run = make_run(len(entries) + 1) if run is None else run
    made: list[Tensor] = []
    for entry, grad in zip(entries, gradients(entries) if grads is None else grads, strict=True):
        words = sixteen_bits.random_words(entry, run)
        group, tensor = run.group_coefs[entry.group].float(), run.tensor_coefs[entry.slot].float()
        g, y = grad.float(), entry.param.float()
        if entry.y_low is not None:
            y = reference.y_of_parts(entry.param, entry.y_low)
        m, v = group[GroupCoef.GRAD_TO_M] * g, None
        if entry.exp_avg_sq is not None and entry.exponents is not None:
            v = reference.exp_avg_sq_of(entry.exp_avg_sq, entry.exponents)
        if entry.exp_avg is not None and v is not None:
            m = group[GroupCoef.BETA1] * reference.exp_avg_of(entry.exp_avg, v) + m
        delta = tensor[TensorCoef.STEP_SIZE] * m
        if v is not None:
            v = group[GroupCoef.BETA2] * v + group[GroupCoef.GRAD_TO_V] * g * g
            root = v.double().sqrt().float()
            delta = delta / (root * tensor[TensorCoef.INV_SQRT_BC2] + group[GroupCoef.EPS])
        delta = delta + group[GroupCoef.OMEGA] * y
        moved, e = group[GroupCoef.DELTA_TO_Y] * delta, None
        if entry.displacement is not None:
            e = entry.displacement.float()
            moved = tensor[TensorCoef.E_TO_Y] * e + moved
            e = group[GroupCoef.E_KEPT] * (e - delta)
        y = y + moved
        made += [y] if entry.y_low is None else reference.parts_of_y(y, words)
        if v is not None:
            codes, exponents = reference.stored_exp_avg_sq(v, words)
            made += [codes, exponents]
            if entry.exp_avg is not None:
                stored = reference.exp_avg_sq_of(codes, exponents)
                made.append(reference.stored_exp_avg(m, stored, words))
        if e is not None:
            made.append(reference.stored_displacement(e, words))
    return made
