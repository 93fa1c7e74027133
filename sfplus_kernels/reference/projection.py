"""Rows of a fixed norm, for reading and testing."""

from __future__ import annotations

from torch import Tensor


def project_rows(weight: Tensor, row_norm: float | None) -> None:
    """Bring each row of ``weight``, in place, to this L2 norm; a row of zeros stays, and with None all do."""
    if row_norm is not None and weight.numel() > 0:
        norms = weight.flatten(1).norm(dim=1)
        for row, norm in zip(weight, norms.tolist(), strict=True):
            if norm > 0:
                row.mul_(row_norm / norm)
