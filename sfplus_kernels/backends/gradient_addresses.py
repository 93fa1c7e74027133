"""Where this step's gradients are: the column of the address table that may change with every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfplus_kernels.backends.table import AddressTable, same_layout
from sfplus_kernels.backends.tensor_reader import tensor_reader
from sfplus_kernels.contract.capture import capturing


def bring_gradients(table: AddressTable, gradients: Sequence[Tensor], *, moved: bool) -> None:
    """Refill the gradient addresses where they ``moved``, and the stages of gradients of another layout."""
    if moved:
        point_at_gradients(table, gradients)
    for row in table.staged_rows:
        table.grad_stages[row].copy_(gradients[table.order[row]].detach())


def point_at_gradients(table: AddressTable, gradients: Sequence[Tensor]) -> None:
    """Refill the gradient addresses; a gradient of another layout is read through its stage.

    A step that is recorded into a CUDA graph gets a table of its own: its replays read the addresses of
    the capture, whatever steps are run between them.
    """
    table.staged_rows.clear()
    ordered = [gradients[index] for index in table.order]
    host = _addresses(table, ordered)
    device = table.own_gradients.device
    if capturing(device):
        recorded = torch.empty_like(table.own_gradients)  # in the graph's own memory
        recorded.copy_(table.host_gradients.give(host), non_blocking=True)
        table.captured_gradients.append(recorded)
        table.gradients = recorded
        return
    if device.type == "cuda":
        host = host.pin_memory()
        table.host_gradients.refill()
    table.gradients = table.own_gradients.copy_(host, non_blocking=True)


def _any_neg(gradients: list[Tensor]) -> bool:
    """Whether a change of sign is put off in one of them, as far as the reader does not look itself."""
    reader = tensor_reader()
    asked = gradients[:1] if reader is not None and reader.knows_words else gradients
    return any(map(Tensor.is_neg, asked))


def _addresses(table: AddressTable, gradients: list[Tensor]) -> Tensor:
    """Where the gradients are, in the order of the rows: int64; those of another layout get a stage."""
    reader = tensor_reader()
    if reader is not None and gradients and not table.converted_rows and not _any_neg(gradients):
        # the loop below would take ten times as long
        found = reader.addresses(gradients, table.state_strides)
        if found is not None:
            return torch.frombuffer(found, dtype=torch.int64)
    addresses = []
    for row, grad in enumerate(gradients):
        dtype = table.converted_rows.get(row, grad.dtype)
        fits = dtype == grad.dtype and same_layout(table.state_strides[row], grad)
        if grad.numel() > 0 and not fits:
            if row not in table.grad_stages:
                table.grad_stages[row] = torch.empty_strided(
                    grad.shape, table.state_strides[row], dtype=dtype, device=grad.device
                )
            table.staged_rows.append(row)
            grad = table.grad_stages[row]
        addresses.append(grad.data_ptr())
    return torch.tensor(addresses, dtype=torch.int64)
