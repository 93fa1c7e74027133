"""DeepSpeed's ZeRO-0, 1 and 2 with the adapter and without it, on one rank and on two."""

from typing import Any

import pytest
import torch
from libraries import equal, held, iterate, needs, same
from support.ranks import results_of

needs("deepspeed")

import deepspeed_worker as worker

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

EACH = pytest.mark.parametrize(
    ("maker", "stage"),
    [(m, s) for m in (worker.plus, worker.adamw, worker.adamw_in_groups) for s in worker.STAGES],
)


@pytest.fixture(params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return results_of(worker, request.param)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6)


@EACH
def test_one_process(results: list[dict[str, Any]], maker: Any, stage: int) -> None:
    """Loss, norm, gamma, y and x are those of one process with everything; ranks agree to the last bit."""
    model, optimizer, figures = worker.plain(maker, len(results))
    found = [result["trains_and_evaluates"][maker.__name__, stage] for result in results]
    for key, values in figures.items():
        assert found[0][key] == pytest.approx(values, rel=1e-5)
    close(found[0]["y"], held(model))
    close(found[0]["again"], held(model))
    x = iterate(model, optimizer)
    close(found[0]["x"], x)
    assert max(float((x[n] - found[0]["y"][n]).abs().max()) for n in x) > 1e-3
    for other in found[1:]:
        for key in ("y", "x", "again"):
            assert same(other[key], found[0][key])


def test_plain_use(results: list[dict[str, Any]]) -> None:
    """The model stays at y in eval mode; on two ranks the norm lacks half of the gradient."""
    found = results[0]["without_the_adapter"]
    assert same(found["x"], found["y"])
    figures = worker.plain(worker.plus, len(results), 1)[2]
    if len(results) == 2:
        assert found["norms"][0] < 0.8 * figures["norms"][0]
    else:
        assert found["norms"][0] == pytest.approx(figures["norms"][0], rel=1e-5)


@pytest.mark.parametrize("stage", worker.STAGES)
def test_clipping(results: list[dict[str, Any]], stage: int) -> None:
    free = worker.plain(worker.plus, len(results), 1)[2]
    clipped = results[0]["clipping"][stage, True]
    assert clipped["max_grad_norm"] == 0.1
    assert clipped["polyak"] == pytest.approx(free["polyak"], rel=1e-5)
    assert clipped["norms"] == pytest.approx(free["norms"], rel=1e-5)
    plain = results[0]["clipping"][stage, False]
    assert plain["polyak"][0] > 2 * free["polyak"][0]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("stage", worker.STAGES[1:])
def test_resume_is_exact(results: list[dict[str, Any]], stage: int, mode: str) -> None:
    for result in results:
        (model, parts, figures), (again, its, others) = result["resumes"][stage, mode]
        assert equal([model], [again])
        assert figures == others
        for one, other in zip(parts, its, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_several_groups_are_refused(results: list[dict[str, Any]]) -> None:
    assert "2 parameter groups" in results[0]["refusals"]["groups"]
