"""What a run consists of: the sections in their order, as (title, function) for a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import zip_longest

from bench.measure.sections import Bench
from bench.record.rows import Row
from bench.work.workloads import Shapes, Workload, suite

Part = tuple[str, Callable[[], list[Row]]]

SIZES = {"cpu": (10**5, 10**8), "cuda": (10**5, 4 * 10**9), "quick": (10**4, 10**6)}
"""The curve of time against parameters: about two points for each power of ten."""
TOTAL = {"cpu": 2 * 10**7, "cuda": 2 * 10**8, "quick": 2 * 10**6}
"""Parameters in the curve of time against the number of tensors."""
COUNTS = (1, 10, 100, 1_000, 5_000, 10_000, 20_000)


def sizes(kind: str) -> list[int]:
    """From the first to the last of ``SIZES`` by steps of about the square root of ten."""
    low, high = SIZES[kind]
    points = []
    n = low
    while n < high:
        points.append(n)
        n = 3 * n if str(n)[0] == "1" else n // 3 * 10
    return [*points, high]


def chosen_workloads(device_type: str, quick: bool, chosen: str) -> list[Workload]:
    """All workloads of the suite, or those named in ``chosen``, separated by commas.

    Raises:
        ValueError: no workload has such a name.
    """
    known = {w.name: w for w in suite(device_type, quick)}
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown workload {name!r}: expected some of {', '.join(known)}")
    return [known[name] for name in names] or list(known.values())


def parts(bench: Bench, workloads: list[Workload], *, scaling: bool) -> list[Part]:
    """The whole run; ``scaling`` is False where only some workloads were asked for."""
    device_type = bench.device.type
    found: list[Part] = [("bandwidth", bench.measure_ceilings)]
    for index, workload in enumerate(workloads):
        steps = partial(bench.measure_steps, workload, first=index == 0)
        found.append((workload.name, steps))
    alone = [(f"passes, {w.name}", partial(bench.measure_passes, w)) for w in workloads if w.passes]
    if not scaling:
        return found + alone
    found += alone[:1]
    found.append(("rows of a norm, and drift", partial(bench.measure_options, workloads[0])))
    if device_type == "cpu":
        found.append(("beside a busy thread", partial(bench.measure_busy, workloads[0])))
    kind = "quick" if bench.quick else device_type
    found.append(("host time", bench.measure_host))
    found.append(("host time, step after step", bench.measure_host_in_pairs))
    by_size = [_point(bench, "size", f"{n} parameters", [(n,)]) for n in sizes(kind)]
    by_count = [
        _point(bench, "count", f"{count} tensors", [(TOTAL[kind] // count,)] * count)
        for count in COUNTS
    ]
    # a run that is ended early has the beginning of both curves, and lacks passes over other tensors first
    for both in zip_longest(by_size, by_count):
        found += [point for point in both if point is not None]
    return found + alone[1:]


def _point(bench: Bench, section: str, title: str, shapes: Shapes) -> Part:
    return title, partial(bench.measure_scaling, section, title, shapes)
