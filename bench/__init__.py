"""What one optimizer step costs, against the memory's bandwidth and against what else there is.

    python -m bench --help       one run: JSON, CSV, plots and a report
    pytest bench                 the same steps under pytest-benchmark, to follow regressions

From the bottom up: ``workloads`` (the tensors), ``contestant``, ``family`` and ``peers`` (the optimizers, one
line each), ``traffic`` (bytes by count), ``check`` (right before timed), ``timing``, ``sections`` (what is
measured), ``plan`` (a whole run), ``rows`` (the result file). ``plots``, ``report``, ``table`` and ``readme``
read result files alone.
"""
