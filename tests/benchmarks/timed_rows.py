"""Rows of a result as the tests of them make them."""

from typing import Any

from bench.record.rows import Row


def timed(name: str, traffic: int, seconds: list[float], **values: Any) -> Row:
    row = Row("step", "w", name, traffic=traffic, read=traffic // 2, n_params=100, **values)
    row.set_times(seconds)
    return row
