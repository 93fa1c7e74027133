"""What a trainer logs beside the learning rate, which says nothing here: without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sfplus_kernels.optim import unwrap

PER_GROUP = {"scheduled_lr": "gamma", "capped": "capped", "ckp1": "averaging_weight"}
GLOBAL = ("polyak_lr", "grad_norm", "skipped_steps")


class Figures:
    """The figures of one optimizer for a trainer's log."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = unwrap(optimizer)
        self._norms: dict[str, Late] = {"weight_norm": Late(), "grad_norm": Late()}

    def read(self) -> dict[str, float]:
        """The newest figures that have arrived on the host; on a GPU those of an earlier step.

        ``gamma`` (the step size), ``capped`` (1 where ``max_lr`` held it down), ``averaging_weight`` (c_k),
        ``polyak_lr``, ``skipped_steps``, ``grad_norm`` before clipping, ``weight_norm`` of what the
        parameters hold; ``gamma/1`` and so on where groups differ. Norms are left out where parameters are
        divided among processes.
        """
        metrics = self._optimizer.metrics(wait=False)
        values: dict[str, float] = {}
        for key, name in PER_GROUP.items():
            if key in metrics:
                values |= _by_group(name, metrics[key])
        values |= {name: float(metrics[name]) for name in GLOBAL if name in metrics}  # type: ignore[arg-type]
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        tensors = {"weight_norm": params}
        if "grad_norm" not in metrics and not hasattr(self._optimizer, "grad_scale"):
            tensors["grad_norm"] = [p.grad for p in params if p.grad is not None]
        for name, some in tensors.items():
            norm = self._norms[name].next(_norm(some))
            if norm is not None:
                values[name] = norm
        return values


class Late:
    """One number of the device, read at the next call or later, when it has arrived."""

    def __init__(self) -> None:
        self._under_way: tuple[Any, Tensor] | None = None
        self._newest: float | None = None

    def next(self, value: Tensor | None) -> float | None:
        """Start a copy of ``value``, unless one is under way; the newest that arrived, or None."""
        self._collect()
        if value is not None and self._under_way is None:
            on_gpu = value.device.type == "cuda"
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=on_gpu)
            copy.copy_(value, non_blocking=True)
            event = None
            if on_gpu:
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(value.device))
            self._under_way = event, copy
            self._collect()
        return self._newest

    def _collect(self) -> None:
        if self._under_way is not None:
            event, copy = self._under_way
            if event is None or event.query():
                self._newest, self._under_way = float(copy), None


@torch.no_grad()
def _norm(tensors: Iterable[Tensor]) -> Tensor | None:
    """L2 norm over all; None without tensors, and where each process holds a part of them."""
    plain = list(tensors)
    if not plain or any(type(t).__name__ == "DTensor" for t in plain):
        return None
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in plain) else torch.float32
    norms = torch._foreach_norm(plain, 2, dtype=dtype)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _by_group(name: str, metric: float | list[float]) -> dict[str, float]:
    values = metric if isinstance(metric, list) else [metric]
    if len(set(values)) == 1:
        return {name: values[0]}
    return {f"{name}/{index}": value for index, value in enumerate(values)}
