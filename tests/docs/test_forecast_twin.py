"""The forecast in the page is that of sfplus_kernels.forecast, which does it in Python."""

import json
import re
from pathlib import Path
from typing import Any

import javascript
import numpy as np
import pytest
from support import ROOT

from sfplus_kernels import forecast

pytestmark = pytest.mark.skipif(
    javascript.NODE is None, reason="needs Node.js, which runs the pages' JavaScript"
)


def in_javascript(step: np.ndarray, loss: np.ndarray, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = javascript.ask(
        "forecast", **{"step": step, "loss": loss, "until": 5000, **options}
    )
    return found


CURVES = sorted((ROOT / "docs" / "data" / "curves").glob("*.json"))


@pytest.mark.parametrize("seen", [1.0, 0.6], ids=["whole", "begun"])
@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.stem)
def test_forecast_is_the_librarys(path: Path, seen: float) -> None:
    """On the shipped curves, whole and cut off: the fit, and both intervals, to 1e-3."""
    curve = json.loads(path.read_text())["curve"]
    n = round(seen * len(curve["step"]))
    step, loss = np.array(curve["step"][:n]), np.array(curve["loss"][:n])
    expected = forecast.fit(forecast.LossCurve(step, loss))
    found = in_javascript(step, loss)
    for name in ("a", "b", "c"):
        assert found[name] == pytest.approx(getattr(expected.fit, name), rel=1e-3, abs=1e-3), name
    assert found["burnIn"] == expected.fit.burn_in
    assert found["bins"] == len(expected.fit.step)
    assert found["drift"] == pytest.approx(expected.drift, abs=1e-3)
    assert found["limitDrift"] == pytest.approx(expected.limit_drift, abs=1e-3)
    assert found["at"] == pytest.approx(expected.at(5000), abs=1e-3)
    assert found["interval"] == pytest.approx(expected.interval(5000), abs=1e-3)
    assert found["limitInterval"] == pytest.approx(expected.limit_interval(), abs=1e-3)


def noisy(loss: np.ndarray) -> np.ndarray:
    return loss + 0.02 * np.random.default_rng(5).normal(size=len(loss))


STEP = np.arange(1.0, 401)
FALLING = noisy(20 / np.sqrt(STEP + 30) + 1)
HALF_WAY_DOWN = 1 - STEP / 500
REFUSED: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any], str]] = {
    "few points": (STEP[:40], FALLING[:40], {}, "40 points"),
    "a rise": (STEP, noisy(1 + STEP / 400), {}, "rises|does not follow|falls by"),
    "flat": (STEP, noisy(np.ones(400)), {}, "falls by|rises|does not say"),
    "another form": (STEP, noisy(3 - STEP / 200), {}, "does not follow"),
    "negative": (STEP, FALLING - 3, {}, "below its floor"),
    "steps go back": (np.r_[STEP[:200], STEP[:200]], FALLING, {}, "several runs"),
    "a NaN": (STEP, np.where(STEP == 300, np.nan, FALLING), {}, "not finite at step 300"),
    "a schedule": (STEP, FALLING, {"rate": HALF_WAY_DOWN}, "still changes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_forecast_refuses_what_the_library_refuses(case: str) -> None:
    step, loss, extra, message = REFUSED[case]
    with pytest.raises(forecast.CannotForecast):
        forecast.fit(forecast.LossCurve(step, loss, extra.get("rate")))
    found = in_javascript(step, loss, **extra)
    assert re.search(message, found["refused"]), found


def test_forecast_begins_where_the_learning_rate_is_constant() -> None:
    rate = np.minimum(STEP / 120, 1)
    expected = forecast.fit(forecast.LossCurve(STEP, FALLING, rate))
    found = in_javascript(STEP, FALLING, rate=rate)
    assert expected.fit.step[0] >= 119
    assert found["first"] == expected.fit.step[0]
    assert found["c"] == pytest.approx(expected.fit.c, abs=1e-3)


def test_what_the_page_says_of_its_runs() -> None:
    """Half of a run seen: its end is in the band without a schedule, and below it under a linear decay."""
    for path in CURVES:
        run = json.loads(path.read_text())
        step, loss = (np.array(run["curve"][name]) for name in ("step", "loss"))
        half, last = (len(step) + 1) // 2, float(step[-1])
        found = in_javascript(step[:half], loss[:half], until=last)
        end = loss[step > 0.95 * last].mean()
        low, high = found["interval"]
        if run["point"]["schedule"] is None:
            assert low < end < high, path.stem
        else:
            assert [found["at"], low, end] == pytest.approx([2.14, 2.10, 1.99], abs=0.006)
