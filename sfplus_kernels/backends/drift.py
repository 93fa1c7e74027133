"""Where a drift monitor's sums are: a slot for each chunk of an address table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfplus_kernels.contract.layout import Chunk, Drift


@dataclass
class DriftSlots:
    """Written by ``update``, each by whoever does that chunk: the same bits in every run."""

    slots: Tensor  # (n_chunks, len(Drift)) float64
    counts: Tensor  # (n_rows,) int64, the chunks of each row
    rows: Tensor  # (n_entries,) int64, the row of each entry

    @classmethod
    def of(cls, chunks: Tensor, order: Sequence[int], device: torch.device) -> DriftSlots:
        """Slots that nothing was written to.

        Args:
            chunks: (n_chunks, len(Chunk)), on the host, row by row.
            order: the entry of each row.
        """
        counts = torch.bincount(chunks[:, Chunk.ROW], minlength=len(order))
        rows = torch.empty(len(order), dtype=torch.int64)
        rows[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
        return cls(
            slots=torch.full(
                (len(chunks), len(Drift)), torch.nan, dtype=torch.float64, device=device
            ),
            counts=counts.to(device),
            rows=rows.to(device),
        )

    def address(self, first_chunk: int) -> int:
        """Of the slot of a chunk."""
        return (
            self.slots.data_ptr() + first_chunk * self.slots.stride(0) * self.slots.element_size()
        )

    def of_entries(self) -> Tensor:
        """The sums of each entry, (n_entries, len(Drift)), added up in a fixed order."""
        sums = torch.segment_reduce(self.slots, "sum", lengths=self.counts, axis=0, unsafe=True)
        return sums[self.rows]


def drift_of_entries(drift: DriftSlots | None) -> Tensor:
    """What ``Backend.drift`` returns."""
    assert drift is not None, "the plan was made without watched=True"
    return drift.of_entries()


def drift_sums(old_y: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """The sums of ``layout.Drift`` over one tensor."""
    moved = y - old_y
    sums = [
        (a * b).to(torch.float64).sum() for a, b in ((y, y), (g, g), (moved, moved), (y, moved))
    ]
    return torch.stack(sums)
