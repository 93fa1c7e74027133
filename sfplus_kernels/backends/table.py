"""The address table: how a list of tensors becomes memory that one kernel launch can walk.

Shared by the backends that work on raw addresses. Tensors are sorted by their dtypes into launches and
cut into chunks; the arithmetic of that is in pure functions, so that it is tested without a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfplus_kernels.backends.drift import DriftSlots
from sfplus_kernels.contract.backend import Entry
from sfplus_kernels.contract.capture import HostStock
from sfplus_kernels.contract.formats import FLOAT_DTYPES
from sfplus_kernels.contract.layout import VIRTUAL_BLOCKS, Chunk, Format, Sum
from sfplus_kernels.contract.streams import StreamUse


@dataclass(frozen=True)
class Launch:
    """The tensors of one kind (see ``sort_into_launches``): a range of the chunks."""

    param_dtype: torch.dtype
    grad_dtype: torch.dtype | None
    has_exp_avg: bool
    has_exp_avg_sq: bool
    has_displacement: bool
    first_chunk: int
    n_chunks: int
    n_elements: int
    first_partial: int  # row of ``AddressTable.partials`` where this launch's slots begin
    shards: int = 1  # as in ``Entry``, and below
    format: Format = Format.FULL
    projects: bool = False  # rows get a fixed norm; each chunk is a row

    @property
    def n_partials(self) -> int:
        """Virtual block i sums the chunks i, i + n_partials, i + 2 n_partials, ..."""
        return min(self.n_chunks, VIRTUAL_BLOCKS)


@dataclass
class AddressTable:
    """Device memory that names every tensor of a pass; see ``layout`` for the columns."""

    rows: Tensor  # (n_rows, len(Row)) int64
    gradients: Tensor  # (n_rows,) int64, addresses: those of ``own_gradients``, or a capture's
    own_gradients: Tensor  # refilled when an address changed
    captured_gradients: list[Tensor]  # each the table of one recorded step; never changed
    host_gradients: HostStock  # what recorded steps fill theirs from
    chunks: Tensor  # (n_chunks, len(Chunk)) int64
    partials: Tensor  # (sum of n_partials, len(Sum)) float64
    tickets: Tensor  # (3,) int32: which block is first, or last, in the kernel that finishes a step
    launches: list[Launch]
    order: list[int]  # rows[i] describes entries[order[i]]
    grad_stages: dict[int, Tensor]  # by row: a copy in the state's layout, made on demand
    converted_rows: dict[int, torch.dtype]  # whose gradients are always staged, and in which dtype
    staged_rows: list[int]  # whose gradients have another layout now
    param_stages: list[tuple[Tensor, Tensor]]  # (parameter of another layout, its dense stand-in)
    state_strides: list[tuple[int, ...]]
    keep_alive: list[Entry] = field(repr=False)  # the table holds bare addresses of these
    use: StreamUse  # of the device tensors above
    drift: DriftSlots | None  # of a plan that is watched

    @property
    def n_rows(self) -> int:
        return len(self.order)


def cut_into_chunks(
    numels: Sequence[int], chunk_size: int | Sequence[int], first_row: int = 0
) -> Tensor:
    """Chunk table of tensors with ``numels`` elements: int64, shape (n_chunks, len(Chunk)).

    Row by row and front to back; an empty tensor gets no chunk. ``chunk_size`` is one for all, or one each.
    """
    sizes = [chunk_size] * len(numels) if isinstance(chunk_size, int) else chunk_size
    counts = torch.tensor([-(-n // size) for n, size in zip(numels, sizes, strict=True)])
    counts = counts.to(torch.int64)
    rows = torch.arange(len(numels), dtype=torch.int64).repeat_interleave(counts)
    first_chunk = counts.cumsum(0) - counts
    size_of = torch.tensor(sizes, dtype=torch.int64)
    starts = (torch.arange(len(rows), dtype=torch.int64) - first_chunk[rows]) * size_of[rows]
    return torch.stack((rows + first_row, starts), dim=1)


def same_layout(strides: Sequence[int], tensor: Tensor) -> bool:
    """Whether element i of the memory is the same element in both: strides of 1-sized dimensions
    do not matter. It is not where torch has put off a change of sign."""
    if tensor.is_neg():
        return False
    own = tensor.stride()
    if own == strides:
        return True
    return all(a == b for a, b, size in zip(own, strides, tensor.shape, strict=True) if size != 1)


def sort_into_launches(entries: Sequence[Entry]) -> list[list[int]]:
    """Indices of the non-empty entries, one list for each launch, in order of first appearance.

    A launch has one (parameter, gradient) dtype pair, one set of buffers, one number of shards and one
    format, and rows of all its tensors are projected or of none.
    """
    kinds: dict[tuple, list[int]] = {}
    for index, entry in enumerate(entries):
        if entry.param.numel() > 0:
            kept = (entry.exp_avg, entry.exp_avg_sq, entry.displacement)
            buffers = tuple(buffer is not None for buffer in kept)
            kind = (entry.param.dtype, entry.grad_dtype, buffers, entry.shards, entry.format)
            kinds.setdefault((*kind, entry.projected), []).append(index)
    return list(kinds.values())


def build_table(
    entries: Sequence[Entry],
    device: torch.device,
    chunk_size: int,
    gradients_of: Callable[[Entry], Sequence[torch.dtype]] = lambda entry: FLOAT_DTYPES,
    *,
    watched: bool = False,
) -> AddressTable:
    """Make the table on the host and send it to ``device`` without waiting for it.

    Args:
        gradients_of: the dtypes of gradients that the backend has kernels for, with the tensors of an
            entry; others are brought to it in the first of them.
    """
    launches: list[Launch] = []
    chunk_tables: list[Tensor] = []
    rows: list[tuple[int, ...]] = []
    order: list[int] = []
    converted: dict[int, torch.dtype] = {}
    param_stages: list[tuple[Tensor, Tensor]] = []
    first_chunk = first_partial = 0
    for indices in sort_into_launches(entries):
        members = [entries[i] for i in indices]
        grad_dtype = members[0].grad_dtype
        known = gradients_of(members[0])
        if grad_dtype not in (None, *known):
            grad_dtype = known[0]
            converted |= dict.fromkeys(range(len(rows), len(rows) + len(members)), grad_dtype)
        sizes = [row_length(e) or chunk_size for e in members]
        chunks = cut_into_chunks([e.param.numel() for e in members], sizes, len(rows))
        launch = Launch(
            param_dtype=members[0].param.dtype,
            grad_dtype=grad_dtype,
            has_exp_avg=members[0].exp_avg is not None,
            has_exp_avg_sq=members[0].exp_avg_sq is not None,
            has_displacement=members[0].displacement is not None,
            first_chunk=first_chunk,
            n_chunks=len(chunks),
            n_elements=sum(e.param.numel() for e in members),
            first_partial=first_partial,
            shards=members[0].shards,
            format=members[0].format,
            projects=members[0].projected,
        )
        launches.append(launch)
        chunk_tables.append(chunks)
        first_chunk += launch.n_chunks
        first_partial += launch.n_partials
        order.extend(indices)
        for entry in members:
            param = entry.param
            if not same_layout(entry.strides, param):
                dense = torch.empty_strided(
                    param.shape, entry.strides, dtype=param.dtype, device=param.device
                )
                param_stages.append((param, dense))
                param = dense
            rows.append(_row(entry, param))
    # empty tensors have no chunk, and a row all the same: finalize counts their steps
    empty = [index for index, entry in enumerate(entries) if entry.param.numel() == 0]
    order.extend(empty)
    rows.extend(_row(entries[index], entries[index].param) for index in empty)

    n_rows = len(rows)
    own_gradients = torch.zeros(n_rows, dtype=torch.int64, device=device)
    sent_rows = _send(rows, device)
    chunks = torch.cat(chunk_tables) if chunk_tables else torch.zeros(0, len(Chunk)).long()
    sent_chunks = _send(chunks, device)
    partials = torch.zeros(first_partial, len(Sum), dtype=torch.float64, device=device)
    tickets = torch.zeros(3, dtype=torch.int32, device=device)
    return AddressTable(
        rows=sent_rows,
        gradients=own_gradients,
        own_gradients=own_gradients,
        captured_gradients=[],
        host_gradients=HostStock((n_rows,), torch.int64, pin=device.type == "cuda"),
        chunks=sent_chunks,
        partials=partials,
        tickets=tickets,
        launches=launches,
        order=order,
        grad_stages={},
        converted_rows=converted,
        staged_rows=[],
        param_stages=param_stages,
        state_strides=[entries[i].strides for i in order],
        keep_alive=list(entries),
        use=StreamUse(device, [sent_rows, own_gradients, sent_chunks, partials, tickets]),
        drift=DriftSlots.of(chunks, order, device) if watched else None,
    )


def load_param_stages(table: AddressTable) -> None:
    """Bring parameters whose layout is not the state's into their dense stand-ins."""
    for param, dense in table.param_stages:
        dense.copy_(param.detach())


def store_param_stages(table: AddressTable) -> None:
    """And back."""
    for param, dense in table.param_stages:
        param.detach().copy_(dense)


def row_length(entry: Entry) -> int:
    """``layout.Row.ROW_LENGTH``"""
    empty = entry.param.numel() == 0
    return 0 if empty or not entry.projected else entry.param.numel() // entry.param.shape[0]


def _row(entry: Entry, param: Tensor) -> tuple[int, ...]:
    beside = entry.master_param if entry.y_low is None else entry.y_low
    return (  # the order of layout.Row
        (param if beside is None else beside).data_ptr(),
        0 if beside is None else param.data_ptr(),
        0 if entry.exp_avg is None else entry.exp_avg.data_ptr(),
        0 if entry.exp_avg_sq is None else entry.exp_avg_sq.data_ptr(),
        0 if entry.displacement is None else entry.displacement.data_ptr(),
        param.numel(),
        entry.group,
        entry.slot,
        0 if entry.y_high is None else entry.y_high.data_ptr(),
        *((0, max(param.numel(), 1), 0) if entry.part is None else entry.part),
        0 if entry.exponents is None else entry.exponents.data_ptr(),
        row_length(entry),
    )


def _send(values: Tensor | Iterable, device: torch.device) -> Tensor:
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
