"""Who has room beside the others."""

from __future__ import annotations

from collections.abc import Sequence

from bench.contestants.contestant import OTHERS, TIERS, Contestant
from bench.measure.check import Checked
from bench.record.rows import Row
from bench.work.workloads import Workload


def present(contestants: Sequence[Contestant], workload: Workload) -> list[Contestant]:
    """Those that can run here and have something to show in ``workload``."""
    return [c for c in contestants if c.suits(workload) and not c.absent]


def leave_out_what_does_not_fit(
    rows: Sequence[Row],
    field_: Sequence[Contestant],
    checks: Sequence[Checked],
    workload: Workload,
    memory: float,
) -> None:
    """Contestants are let in by their tier, then in their order, as long as there is ``memory``, in bytes."""
    n = rows[0].n_params if rows else 0
    left = memory - n * (workload.param_dtype.itemsize + workload.grad_dtype.itemsize)
    all_ = sorted(
        zip(rows, field_, checks, strict=True),
        key=lambda of: (*TIERS, OTHERS).index(of[1].tier),
    )
    for row, contestant, checked in all_:
        if row.status != "ok":
            continue
        needed = n * checked.state_per_param
        needed += n * workload.grad_dtype.itemsize * contestant.writes_gradients
        if needed > left:
            row.status = "left out"
            row.reason = f"needs {needed / 1e9:.1f} GB beside the others"
        else:
            left -= needed
