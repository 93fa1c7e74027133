"""The figures answer in a real browser: to the keyboard, the mouse and dropped files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from built_site import FIGURES


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES)
def test_figures_can_be_used_by_all(visit: Any, name: str, scheme: str) -> None:
    """Controls have labels, pictures have words, and lines stand out from the paper, light or dark."""
    page = visit(name, scheme=scheme).page
    root = page.locator(FIGURES[name])
    for control in root.locator("input, select, textarea").all():
        assert control.evaluate("e => e.labels.length > 0 && e.labels[0].innerText.trim() !== ''")
    for picture in root.locator("svg[role=img]").all():
        assert len(picture.get_attribute("aria-label")) > 20
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = root.evaluate("e => getComputedStyle(e).color")
    assert (brightness(paper) < 0.2) == (scheme == "dark")
    assert abs(brightness(paper) - brightness(ink)) > 0.5
    for colour in ("blue", "orange", "green", "purple", "grey", "red"):
        value = root.evaluate(f"e => getComputedStyle(e).getPropertyValue('--figure-{colour}')")
        assert contrast(value.strip(), paper) > 3, colour  # WCAG, for graphics


def channels(colour: str) -> np.ndarray:
    if colour.startswith("#"):
        return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.array([float(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255


def brightness(colour: str) -> float:
    """Relative luminance, as WCAG has it."""
    c = channels(colour)
    return float(
        np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


ANSWER = """async id => {
    const [control, times] = [document.getElementById(id), []];
    for (let k = 0; k < 9; k++) {
        control.value = +control.min + (control.max - control.min) * (0.3 + 0.06 * k);
        const start = performance.now();
        control.dispatchEvent(new Event("input", { bubbles: true }));
        await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
        times.push(performance.now() - start);
        await new Promise(done => setTimeout(done, 150));
    }
    return times;
}"""


@pytest.mark.by_hand  # needs a quiet machine
@pytest.mark.parametrize("name", FIGURES)
def test_every_slider_answers_within_100_ms(visit: Any, name: str) -> None:
    page = visit(name).page
    sliders = page.locator(f"{FIGURES[name]} input[type=range]").all()
    assert sliders
    times = {(i := s.get_attribute("id")): np.median(page.evaluate(ANSWER, i)) for s in sliders}
    assert max(times.values()) < 100, times


def test_interpolation_answers(visit: Any) -> None:
    """To the keyboard; and with beta 0 the sequences are SGD's."""
    page = visit("interpolation").page
    lines = page.locator("#interpolation svg[role=img]").nth(0)
    before = lines.inner_html()
    page.locator("#control-steps").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "before => document.querySelector('#interpolation svg[role=img]').innerHTML !== before",
        arg=before,
    )
    assert page.locator("output[for=control-steps]").inner_text() == "299"
    losses = values(page, "#interpolation")
    assert losses["x"] < losses["z"]
    page.locator("#control-beta").fill("0")
    page.wait_for_function("document.querySelector('output[for=control-beta]').textContent === '0'")

    def level() -> bool:
        losses = values(page, "#interpolation")
        return losses["y"] == losses["z"] == losses["SGD, last iterate"]

    assert settled(page, level)
    losses = values(page, "#interpolation")
    assert losses["x"] == losses["SGD, mean of the iterates"]
    page.locator("#interpolation th input").first.uncheck()
    page.wait_for_function("document.querySelectorAll('#interpolation svg circle').length === 0")


def values(page: Any, root: str) -> dict[str, str]:
    """The first column of a figure's table, as text; numbers of equal length compare as numbers do."""
    rows = page.locator(f"{root} .figure-key tbody tr").all()
    found = {}
    for row in rows:
        name = row.locator("th").inner_text().strip()
        found[name] = row.locator("td").first.inner_text()
    return {name: float(text) for name, text in found.items()}  # type: ignore[misc]


def outcome(page: Any) -> dict[str, list[str]]:
    """All columns of the step-size page, when every run is done."""
    page.wait_for_timeout(100)
    page.wait_for_selector("#step-size[data-done=true]", timeout=120_000)
    rows = page.locator("#step-size .figure-key tbody tr").all()
    return {
        row.locator("th").inner_text().strip(): row.locator("td").all_inner_texts() for row in rows
    }


def test_step_size_needs_no_tuning_for_another_loss(visit: Any) -> None:
    """The page's own claims: which lines move when the loss or the gradient is multiplied."""
    page = visit("step-size").page
    page.locator("#control-steps").fill("60")  # planned steps: a short run will do
    usual = outcome(page)
    plus = "ScheduleFree+ (at x)"
    assert all(float(loss) < 2.3 for _, loss, _ in usual.values())  # chance is ln 10
    page.locator("#control-lossScale").fill("2")
    scaled = outcome(page)
    assert scaled[plus][1:] == usual[plus][1:]
    assert scaled["constant"][1:] == usual["constant"][1:]  # Adam's direction has no scale
    page.locator("#control-direction").select_option("SGD")
    assert outcome(page)["constant"] != usual["constant"]
    page.locator("#control-direction").select_option("Adam")
    page.locator("#control-lossScale").fill("0")
    page.locator("#control-gradientScale").fill("1")
    clipped = outcome(page)
    assert float(clipped[plus][0]) < float(usual[plus][0]) / 3
    assert clipped["constant"] == usual["constant"]
    page.locator("#control-gradientScale").fill("0")
    outcome(page)
    page.locator("#control-stop").fill("30")
    assert settled(page, lambda: float(outcome(page)["linear"][0]) > float(usual["linear"][0]))
    stopped = outcome(page)
    assert float(stopped["constant"][0]) == float(usual["constant"][0])


def drop(page: Any, name: str, text: str) -> str:
    """Drop a file on the page; what the page says of it."""
    transfer = page.evaluate_handle(
        "([name, text]) => { const t = new DataTransfer(); t.items.add(new File([text], name)); return t; }",
        [name, text],
    )
    status = page.locator("#own-status")
    status.evaluate("e => { e.textContent = ''; }")
    page.dispatch_event("#own-drop", "drop", {"dataTransfer": transfer})
    page.wait_for_function("document.querySelector('#own-status').textContent !== ''")
    return str(status.inner_text())


STEP = np.arange(1, 301) * 10
LOSS = 30 / np.sqrt(STEP + 50) + 1.5 + 0.02 * np.random.default_rng(0).normal(size=300)
PAIRS = list(zip(STEP.tolist(), LOSS.tolist(), strict=True))


def told(page: Any) -> dict[str, str]:
    rows = page.locator("#predictor .figure-key tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").inner_text() for row in rows}


def settled(page: Any, holds: Callable[[], bool]) -> bool:
    """Whether it holds soon: the page draws when the machine lets it."""
    for _ in range(100):
        if holds():
            return True
        page.wait_for_timeout(100)
    return False


def test_predictor_answers_to_the_stop(visit: Any) -> None:
    page = visit("predictor").page
    half = told(page)
    assert "side" in half["what then happened"]
    page.locator("#control-stop").fill("0.8")

    def stop() -> int:
        return int(told(page)["training stops at step"])

    assert settled(page, lambda: stop() > int(half["training stops at step"]))
    later = told(page)
    assert later["loss foretold"] != half["loss foretold"]
    plot = page.locator("#predictor svg[role=img]").bounding_box()
    page.mouse.move(plot["x"] + 0.9 * plot["width"], plot["y"] + 60)
    page.mouse.down()
    page.mouse.move(plot["x"] + 0.7 * plot["width"], plot["y"] + 60)
    page.mouse.up()
    assert settled(page, lambda: stop() < int(later["training stops at step"]))
    page.locator("#control-run").select_option("AdamW, linear decay")
    status = page.locator(".figure-status").first
    assert settled(page, lambda: "learning rate still changes" in status.inner_text())


FILES = {
    "metrics.csv": "step,loss\n" + "\n".join(f"{t},{v}" for t, v in PAIRS),
    "metrics.jsonl": "\n".join(json.dumps({"step": t, "train/loss": v}) for t, v in PAIRS),
    "trainer_state.json": json.dumps(
        {"log_history": [{"step": t, "loss": v} for t, v in PAIRS]}, indent=1
    ),
}


def test_predictor_takes_ones_own_files(visit: Any) -> None:
    page = visit("predictor").page
    for name, text in FILES.items():
        assert drop(page, name, text) == (
            f"{name}: 300 points, read in this page; nothing was sent anywhere."
        )
        assert settled(page, lambda: told(page)["what then happened"] == "not known yet")
        assert float(told(page)["where it goes in the end, c"].split()[0]) == pytest.approx(
            1.5, abs=0.1
        )
    page.locator("#own-text").fill(FILES["metrics.csv"])
    page.get_by_role("button", name="Read what was pasted").click()
    assert "What was pasted: 300 points" in page.locator("#own-status").inner_text()


BAD_FILES = {
    "empty.csv": ("", "The file is empty."),
    "names.csv": ("epoch,accuracy\n1,0.5", "no column for the step: expected step or"),
    "no_loss.jsonl": ('{"step": 1, "accuracy": 2}', "no column for the loss"),
    "words.csv": ("step,loss\n" + "1,high\n" * 60, 'Column loss has "high"'),
    "cut.jsonl": ('{"step": 1, "loss": 2}\n{"step": 2, "lo', "looks like JSON and is not"),
    "short.csv": ("step,loss\n1,2\n2,1.9", "2 points with a step and a loss; expected 48"),
    "picture.png": ("\x89PNG\r\n\x1a\n\x00\x00", "no column for the step"),
}


def test_predictor_says_what_is_wrong_with_a_file(visit: Any) -> None:
    page = visit("predictor").page
    before = told(page)
    for name, (text, message) in BAD_FILES.items():
        said = drop(page, name, text)
        assert said.startswith(f"{name} cannot be used. "), said
        assert message in said
    assert told(page) == before  # what was shown stays
