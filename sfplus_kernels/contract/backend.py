"""The contract between the engine and the backends: what goes in, and the four operations.

A step is ``reduce`` (where the algorithm needs sums) -> ``finalize`` -> ``update``; ``interpolate`` moves
the parameters between y, x and z. No operation allocates memory that grows with the model or waits for the
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sfplus_kernels.contract.formats import rows_are_runs, strides_row_by_row
from sfplus_kernels.contract.layout import (
    Format,
    Global,
    Group,
    GroupCoef,
    Hyper,
    Move,
    Scalar,
    Setting,
    TensorCoef,
)

MAX_COEFFICIENT = 1e30
"""A step whose gamma or omega is larger is skipped like one with a non-finite loss: as float32
coefficients they, or what they are multiplied with, would overflow."""


class Entry(NamedTuple):
    """The tensors of one parameter, all of one shape, the state tensors of one layout in memory.

    Of a DTensor they are what this process holds of it.

    ``exp_avg``, ``exp_avg_sq``, ``displacement`` and ``master_param`` have the dtypes of
    ``contract.formats``: in ``Format.FULL`` float64 for a float64 parameter, else float32. A moment is None
    where the algorithm keeps none, ``exp_avg`` also where it keeps only the other; SGD's momentum is in
    ``exp_avg``, without the other. ``displacement`` is None where nothing is averaged: then x, y and z are
    one, and there is no ``interpolate``. ``master_param`` is None
    where the parameter itself holds y. Of a bfloat16 parameter in ``Format.HALF`` ``y_low`` is the lower
    half of y, and the parameter the upper one; while that holds x, the upper one is in ``y_high``. So it is
    in ``Format.QUARTER``, where the moments are codes, and all state lies row by row.
    """

    param: Tensor
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    displacement: Tensor | None
    master_param: Tensor | None
    group: int
    slot: int
    grad_dtype: torch.dtype | None  # None in an interpolation, which reads no gradient
    shards: int = 1  # among how many processes the elements are divided; 1 where each holds all
    y_low: Tensor | None = None
    y_high: Tensor | None = None
    part: tuple[int, int, int] | None = None  # INDEX_START, _RUN, _STRIDE; None: all is here
    exponents: Tensor | None = None  # of v in ``Format.QUARTER``, one for 32 elements
    projected: bool = (
        False  # whether rows of z get a fixed norm; each lies in one piece in the state
    )

    @property
    def y(self) -> Tensor:
        return self.param if self.master_param is None else self.master_param

    @property
    def format(self) -> Format:
        if self.exponents is not None or (
            self.y_low is not None and self.y_low.dtype == torch.int8
        ):
            return Format.QUARTER
        kept = (self.displacement, self.exp_avg, self.exp_avg_sq)
        in_halves = self.y_low is not None or any(
            buffer is not None and buffer.dtype.itemsize == 2 for buffer in kept
        )
        return Format.HALF if in_halves else Format.FULL

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the state tensors; where there are none, those that they would have."""
        of_y = (self.master_param, self.y_low)
        for kept in (self.displacement, self.exp_avg, self.exp_avg_sq, *of_y):
            if kept is not None:
                return kept.stride()
        own = torch.empty_like(self.param, device="meta").stride()
        if self.projected and not rows_are_runs(self.param.shape, own):
            return strides_row_by_row(self.param.shape)
        return own


@dataclass(frozen=True)
class RunState:
    """The fp64 buffers of one optimizer, on the parameters' device; columns as in ``layout``."""

    globals: Tensor  # (len(Global),)
    groups: Tensor  # (n_groups, len(Group))
    tensors: Tensor  # (n_params, len(Scalar))
    hyper: Tensor  # (n_groups, len(Hyper))
    settings: Tensor  # (len(Setting),)
    group_coefs: Tensor  # (n_groups, len(GroupCoef))
    tensor_coefs: Tensor  # (n_params, len(TensorCoef))

    @classmethod
    def zeros(cls, n_groups: int, n_params: int, device: torch.device) -> RunState:
        """Before the first step: zeros, but ones for what the gradients are multiplied with."""

        def buffer(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        figures = buffer(len(Global))
        figures[[Global.GRAD_SCALE, Global.CLIP_COEF]] = 1
        return cls(
            globals=figures,
            groups=buffer(n_groups, len(Group)),
            tensors=buffer(n_params, len(Scalar)),
            hyper=buffer(n_groups, len(Hyper)),
            settings=buffer(len(Setting)),
            group_coefs=buffer(n_groups, len(GroupCoef)),
            tensor_coefs=buffer(n_params, len(TensorCoef)),
        )

    def addresses(self) -> dict[str, int]:
        """As the compiled extension's ``Run`` takes them; whoever asks keeps the buffers alive."""
        buffers = {name: buffer.data_ptr() for name, buffer in vars(self).items()}
        return {**buffers, "n_groups": len(self.groups)}


class Backend(Protocol):
    """One implementation of the step. Plans are made by the backend and opaque to the caller."""

    def plan(self, entries: Sequence[Entry], device: torch.device, *, watched: bool = False) -> Any:
        """Everything about these tensors that can be prepared once.

        A plan that is ``watched`` has room for the sums that ``drift`` returns, and ``update`` forms them.

        An empty tensor counts its steps like any other: a process may hold nothing of a parameter whose
        elements are elsewhere, and save its count.
        """

    def set_gradients(self, plan: Any, gradients: Sequence[Tensor], *, moved: bool = True) -> None:
        """Bring this step's gradients to the plan, one for each entry, in their order.

        They have the dtypes given by ``Entry.grad_dtype`` and any strides. Called once in a step, before
        the passes that read them; the caller keeps the gradients alive until the last of these.

        Args:
            moved: whether an address or a layout is another one than in the last call.
        """

    def steps_at_once(self, plan: Any) -> bool:
        """Whether ``step`` is there for a plan: where it takes fewer launches than the passes one by one."""

    def step(
        self, plan: Any, run: RunState, *, sums: bool, with_e: bool, loss: Tensor | None
    ) -> None:
        """``reduce`` (where the step has ``sums``), ``finalize`` and ``update`` of a step in one process.

        Args:
            loss: 0-dim, of one of the four floating dtypes, on the plan's device: to be read in place of
                ``Global.FUNCTION_VALUE``, and written there. None if it has been written already.
        """

    def reduce(self, plan: Any, *, with_e: bool) -> Tensor:
        """sum |g|, sum g e and sum g^2 of all tensors, those of each tensor times its ``shards``.

        Without ``with_e`` only gradients are read, and sum g e is 0.

        Returns:
            Partial sums in float64, (n, len(Sum)), to be added up; memory of the plan.
        """

    def finalize(self, plan: Any, run: RunState, partials: Tensor | None) -> None:
        """Sums, loss and run state -> coefficients; advances the run state, or marks a skip.

        ``partials`` are what ``reduce`` returned, or their sum over several processes, (1, len(Sum)), or
        None where this step has no ``reduce``: the sums then count as zero.
        """

    def update(self, plan: Any, run: RunState) -> None:
        """One read and one write of every tensor; nothing is written on a skipped step."""

    def drift(self, plan: Any) -> Tensor:
        """What the last ``update`` that was no skipped step summed up of each tensor of a watched plan.

        Of what this process holds. NaN, or 0 of an empty tensor, if there was none.

        Returns:
            (n_entries, len(Drift)) float64, in the order of the entries.
        """

    def interpolate(self, plan: Any, run: RunState, move: Move) -> None:
        """Parameters between y, x and z; only ``ABSORB_Z`` regards the mark of a skipped step."""
