"""The drift monitor over two processes: what one would see of the whole tensors."""

import drift_worker as worker
import pytest
from support.ranks import results_of

pytestmark = pytest.mark.slow


def test_sums_are_over_all_processes_where_tensors_are_divided() -> None:
    expected = worker.figures(None)
    for rank in results_of(worker, 2):
        for scenario in ("divided", "copies"):
            for found, one in zip(rank[scenario], expected, strict=True):
                assert found.keys() == one.keys()
                for key, values in one.items():
                    assert found[key] == pytest.approx(values, rel=1e-9, nan_ok=True), key
