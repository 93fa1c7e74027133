"""What one optimizer step costs, against the memory's bandwidth and against what else there is.

    python -m bench --help       one run: JSON, CSV, plots and a report
    pytest bench                 the same steps under pytest-benchmark, to follow regressions

From the bottom up: ``record`` (rows of the result file), ``work`` (the tensors, and bytes by count),
``contestants`` (the optimizers, one line each), ``measure`` (right before timed; races, sections, a run).
``report`` (plots, page, the README's section) reads result files alone.
"""

import importlib.util
import sys

missing = [
    name
    for name in ("jinja2", "matplotlib", "numpy", "rich", "typer")
    if importlib.util.find_spec(name) is None
]
if missing:
    sys.exit(
        f"The benchmarks need {', '.join(missing)}, not installed here: pip install '.[bench]'"
    )
