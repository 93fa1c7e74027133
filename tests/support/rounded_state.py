"""Runs whose state is kept in fewer bits, for the tests of ``state_format``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.state.moments import moments_of

from . import bits, device_of, make_params, run, stream


def in_float64(
    optimizer: Any, params: list, cls: Any, arguments: dict[str, Any]
) -> tuple[Any, list]:
    """The same run, in float64 from here on."""
    twins = [torch.nn.Parameter(optimizer.iterates(p).y.double().cpu()) for p in params]
    twin = cls(twins, backend="eager", **arguments)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        exact = {name: value.double() for name, value in moments_of(state).items()}
        exact |= {"displacement": state["displacement"].double(), "step": state["step"]}
        state.clear()
        state.update(exact)
    saved["param_groups"][0]["probe"] = ()
    twin.load_state_dict(saved)
    return twin, twins


def a_step_beside_float64(
    backend: str,
    of: tuple[Any, dict[str, Any]],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    state_format: str,
    n: int,
) -> tuple[Any, list, Any, list]:
    """Step ``n`` + 1 of a run, and the same step in float64 from the same state.

    Returns both optimizers, each before its parameters.

    Args:
        of: a class and its arguments.
    """
    cls, arguments = of
    params = make_params(shapes, dtype, device_of(backend))
    optimizer = cls(params, backend=backend, state_format=state_format, **arguments)
    run(optimizer, params, n)
    twin, twins = in_float64(optimizer, params, cls, arguments)
    run(optimizer, params, n + 1, skip=n)
    loss = list(stream([p.shape for p in params], n + 1))[-1][0]
    for p, q in zip(params, twins, strict=True):
        q.grad = p.grad.double().cpu()  # as it is in the parameter's dtype
    twin.step(loss=loss)
    return optimizer, params, twin, twins


def on_threads(
    n_threads: int,
    cls: Any,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    **arguments: Any,
) -> list[Tensor]:
    """Three steps on the CPU with so many threads: the bits of parameters and state."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        params = make_params(shapes, dtype)
        optimizer = cls(params, backend="cpu", **arguments)
        run(optimizer, params, 3)
        return [bits(t) for p in params for t in (p, *optimizer.state[p].values())]
    finally:
        torch.set_num_threads(before)
