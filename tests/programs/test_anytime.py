"""examples/anytime.py without its long runs: the plan, a run that stops and goes on, the table of results."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from anytime_parts import charts, report, run
from anytime_parts.corpus import Corpus, Stream
from anytime_parts.methods import schedule
from anytime_parts.plan import MODELS, SCHEDULES, Point, read_plan
from support import ROOT, through_a_file

RESULTS = ROOT / "examples" / "anytime_results"
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 0.01, "weight_decay": 0.1, "warmup_share": 0.2},
    "adamw-schedulefree": {"lr": 0.01, "warmup_steps": 5},
    "schedule-free-plus": {"lr": 1.0, "max_lr": 0.01, "warmup_steps": 5},
}


def point(optimizer: str, **changes: Any) -> Point:
    settings = {"beta1": 0.9, "beta2": 0.99, **SETTINGS[optimizer], **changes.pop("settings", {})}
    schedule = "linear" if optimizer == "adamw" else None
    values = {"stage": "scan", "model": "31k", "batch": 1, "length": 2, "seed": 0, **changes}
    return Point(optimizer=optimizer, schedule=schedule, settings=settings, **values)


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(run, "READ_OFF", (1, 2))
    text = torch.randint(97, 105, (80_000,), generator=torch.Generator().manual_seed(0))
    return Corpus(text[:70_000].to(torch.uint8), text[70_000:].to(torch.uint8))


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_a_run_that_stopped_goes_on_to_the_same_bits(optimizer: str, corpus: Corpus) -> None:
    whole, first, second = (run.Run(point(optimizer), corpus) for _ in range(3))
    for current in (whole, first):
        for _ in range(9):
            current._bin()
    second.restore(through_a_file(first._state()))
    assert second.done == 9
    for current in (whole, second):
        current.train(Path("not-written"), lambda _: None)
    assert whole.curve == second.curve
    assert whole.evaluations == second.evaluations
    lengths = [2] if optimizer == "adamw" else [1, 2]  # one run is read off on the way
    assert [e["tokens_per_parameter"] for e in whole.evaluations] == lengths
    assert whole.curve["loss"][-1] < 3 < whole.curve["loss"][0]


@pytest.mark.parametrize(("batch", "steps"), [(1, 30), (4, 8)])
def test_a_larger_batch_takes_fewer_steps(batch: int, steps: int, corpus: Corpus) -> None:
    current = run.Run(point("adamw", batch=batch), corpus)
    assert current.steps == steps
    assert current.result("", "")["bytes_per_step"] == 2048 * batch


def test_the_sizes_are_called_what_they_are() -> None:
    for name, size in zip(MODELS, (31e3, 135e3, 467e3, 1.0e6), strict=True):
        width, layers = MODELS[name]
        model = run.GPT(width, layers, 64, 0)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.03), name


def test_no_text_is_seen_twice(corpus: Corpus) -> None:
    stream = Stream(corpus.train, 10, 100, seed=1)
    seen = torch.cat([stream.order[10 * k : 10 * k + 10] for k in range(100)])
    assert len(seen.unique()) == 1000
    tokens, targets = stream.batch(7)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    with pytest.raises(ValueError, match="no text is shown twice"):
        Stream(corpus.train, 10, 110, seed=1)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([5.0, 9.0], False),  # a spike of a run with few steps
        ([5.0, *[7.0] * 9], False),
        ([5.0, *[7.0] * 10], True),
        ([5.0, *[7.0] * 9, 3.0], False),
        ([5.0, math.nan], True),
        ([math.inf], True),
    ],
)
def test_what_is_called_divergence(losses: list[float], expected: bool) -> None:
    assert run.hopeless(losses) is expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    factor = schedule(name, 10, 100)
    values = [factor(k) for k in range(100)]
    assert values[0] == 0.1
    assert values[9] == values[10] == max(values) == 1
    assert 0 < values[-1] < 0.06
    half = {"linear": 0.5, "cosine": 0.5, "wsd": 1.0}[name]
    assert values[55] == pytest.approx(half)
    assert values[10:] == sorted(values[10:], reverse=True)


def result(optimizer: str, losses: dict[int, float], **changes: Any) -> report.Result:
    made = point(optimizer, length=max(losses), **changes)
    evaluations = [{"tokens_per_parameter": t, "validation_loss": v} for t, v in losses.items()]
    return {
        "name": made.name,
        "point": made.as_dict(),
        "parameters": 30_816,
        "bytes_per_step": 2048 * made.batch,
        "evaluations": evaluations,
        "diverged": False,
    }


def test_the_best_is_chosen_by_seed_0_and_told_with_its_seeds(tmp_path: Path) -> None:
    plus = "schedule-free-plus"
    found = [
        result("adamw", {100: 2.0}),
        result("adamw", {100: 1.9}, settings={"lr": 0.1}),
        result("adamw", {100: 2.2}, seed=1, settings={"lr": 0.1}),
        result("adamw", {100: 1.5}, seed=1),  # a lucky other seed decides nothing
        result("adamw", {300: 1.8}),
        result(plus, {100: 2.1, 300: 1.7}),
        result(plus, {100: 1.6}, settings={"max_lr": 0.1}),
        result(plus, {100: 2.5}, batch=4),
    ]
    rows = {row[1:4]: row[4:6] for row in report.rows(found)}
    assert rows == {
        ("1", "adamw linear", "100"): ("2", "1.900, 2.200"),
        ("1", "adamw linear", "300"): ("1", "1.800"),
        ("1", "schedule-free-plus, capped", "100"): ("2", "1.600"),
        ("1", "schedule-free-plus, capped", "300"): ("1", "1.700"),
        ("4", "schedule-free-plus, capped", "100"): ("1", "2.500"),
    }
    charts.draw(found, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
    larger = [
        result(plus, {20: 1.7}, model="135k", settings={"max_lr": rate}) for rate in (0.1, 0.2)
    ]
    for one in larger:
        one["parameters"] = 135_488
    charts.draw([*found, *larger], tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "chart.png").read_bytes()
    one_run = charts.longest([r for r in found if r["point"]["batch"] == 1][5:])
    assert {t: report.losses(r)[t] for t, r in one_run.items()} == {100: 2.1, 300: 1.7}


def test_a_valley_is_that_of_the_best_settings() -> None:
    wide = {0.01: 2.0, 0.03: 1.9, 0.1: 2.1}
    assert charts.best_valley([{0.01: 2.2, 0.03: 2.0, 0.1: 2.0, 0.3: 2.1}, wide]) == wide
    assert charts.best_valley([{0.03: 1.8}, {0.01: 1.85, 0.03: 1.84}, wide]) == wide
    assert charts.best_valley([{0.03: 1.8}, {0.01: 1.85, 0.03: 1.84}]) == {0.01: 1.85, 0.03: 1.84}
    assert charts.best_valley([]) == {}


def test_the_results_are_those_of_the_plan_and_of_the_table(tmp_path: Path) -> None:
    found = report.load(RESULTS)
    planned = {p.name: p for p in read_plan()}
    for one in found:
        made = planned[one["name"]]
        assert made.settings == one["point"]["settings"]
        assert (
            one["diverged"]
            or [e["tokens_per_parameter"] for e in one["evaluations"]][-1] == made.length
        )
    assert len({one["corpus"] for one in found}) == 1  # else no two of them could be compared
    report.write_table(found, tmp_path)
    written = (RESULTS / report.TABLE).read_text()
    assert (tmp_path / report.TABLE).read_text() == written, (
        "run `python examples/anytime.py report`"
    )
    assert all(len(json.dumps(one)) < 60_000 for one in found)
