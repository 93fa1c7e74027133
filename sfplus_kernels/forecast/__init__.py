"""The loss foretold: fits a / sqrt(t + b) + c to the loss of a run without a schedule.

    from sfplus_kernels.forecast import fit, read

    forecast = fit(read("metrics.jsonl"))
    forecast.at(100_000)           # the loss at that step
    forecast.interval(100_000)     # where it lies, nine times of ten
    forecast.steps_for(1.7)        # the step at which it gets there

Needs numpy and scipy: ``pip install 'sfplus-kernels[forecast]'``.
"""

try:
    import numpy  # noqa: F401
    import scipy  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"sfplus_kernels.forecast needs {error.name}: pip install 'sfplus-kernels[forecast]'",
        name=error.name,
    ) from error

from sfplus_kernels.forecast.curve import CannotForecast, LossCurve
from sfplus_kernels.forecast.files import read
from sfplus_kernels.forecast.fitting import Forecast, fit

__all__ = ["CannotForecast", "Forecast", "LossCurve", "fit", "read"]
