"""The interactive pages compute what the reference classes do, on the same random data."""

import math
from itertools import pairwise
from typing import Any

import javascript
import numpy as np
import pytest
import torch
from torch import Tensor

from sfplus_kernels.reference import AdamCScheduleFreePlusReference, SGDScheduleFreeReference

pytestmark = pytest.mark.skipif(
    javascript.NODE is None, reason="needs Node.js, which runs the pages' JavaScript"
)

N, STEPS = 7, 60
OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "lr": 0.3,
        "betas": [0.8, 0.99],
        "sf_beta1": 0.5,
        "sf_beta1_max": 0.95,
        "sf_beta1_anneal_steps": 40,
        "eps": 1e-4,
        "weight_decay": 3.0,
        "r": 1.5,
        "polyak_beta": 0.7,
        "c_warmup": 9,
        "weight_lr_power": 1.5,
        "warmup_steps": 12,
        "f_star": 0.2,
    },
]
IN_JAVASCRIPT = {"sf_beta1_anneal_steps": "annealSteps"}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return IN_JAVASCRIPT.get(name, first + "".join(word.title() for word in rest))


def param(values: np.ndarray) -> Tensor:
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("options", OPTIONS, ids=["defaults", "all"])
def test_schedule_free_plus(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(size=N), rng.normal(size=(STEPS, N))
    losses = rng.uniform(0, 3, STEPS)  # some below f_star - ip: there gamma is 0
    found = javascript.ask(
        "plus",
        start=start,
        gradients=gradients,
        losses=losses,
        options={camel(name): value for name, value in options.items()},
    )
    p = param(start)
    optimizer = AdamCScheduleFreePlusReference([p], **options)
    optimizer.train()
    gammas = []
    for gradient, loss, answer in zip(gradients, losses, found, strict=True):
        p.grad = torch.tensor(gradient)
        optimizer.step(loss=loss)
        for name in ("x", "y", "z"):
            np.testing.assert_allclose(
                answer[name], optimizer.state[p][name], rtol=1e-10, atol=1e-12
            )
        group = optimizer.param_groups[0]
        gammas.append(group["scheduled_lr"])
        assert answer["gamma"] == pytest.approx(group["scheduled_lr"], rel=1e-10)
        assert answer["c"] == pytest.approx(group["ckp1"], rel=1e-10)
    assert max(gammas) > 2 * np.median(gammas) > 0


@pytest.mark.parametrize("anneal_steps", [0, 25])
@pytest.mark.parametrize("r", [0, 1.0])
def test_averaging(anneal_steps: int, r: float) -> None:
    """The three sequences of the first page; beta is the reference's, set before each step."""
    rng = np.random.default_rng(2)
    start, noise = rng.normal(size=2), rng.normal(size=(STEPS, 2))
    matrix = np.array([[1.0, 0.3], [0.3, 0.2]])
    settings = {"steps": STEPS, "gamma": 0.4, "beta": 0.6, "annealSteps": anneal_steps, "r": r}
    found = javascript.ask("averaging", start=start, matrix=matrix, noise=noise, settings=settings)

    p, last = param(start), param(start)
    annealed = AdamCScheduleFreePlusReference(
        [param(start)], sf_beta1=0.6, sf_beta1_anneal_steps=anneal_steps
    )
    optimizer = SGDScheduleFreeReference([p], lr=0.4, momentum=0.6, r=r)
    sgd = torch.optim.SGD([last], lr=0.4)
    optimizer.train()
    iterates = []
    for k in range(STEPS):
        optimizer.param_groups[0]["momentum"] = annealed.momentum(k)
        for q in (p, last):
            q.grad = torch.tensor(matrix @ q.detach().numpy() + noise[k])
        optimizer.step()
        sgd.step()
        iterates.append(last.detach().numpy().copy())
        for name in ("x", "y", "z"):
            np.testing.assert_allclose(
                found["path"][k + 1][name], optimizer.state[p][name], rtol=1e-10, atol=1e-12
            )
        np.testing.assert_allclose(found["sgd"][k + 1]["last"], iterates[-1], rtol=1e-10)
        if r == 0:
            mean = np.mean(iterates, axis=0)
            np.testing.assert_allclose(found["sgd"][k + 1]["mean"], mean, rtol=1e-9)


def test_beta() -> None:
    optimizer = AdamCScheduleFreePlusReference(
        [param(np.zeros(1))], sf_beta1=0.5, sf_beta1_anneal_steps=40, sf_beta1_max=0.965
    )
    momentum = {"beta": 0.5, "betaMax": 0.965, "annealSteps": 40}
    found = javascript.ask("beta", steps=list(range(50)), momentum=momentum)
    assert found == pytest.approx([optimizer.momentum(k) for k in range(50)], rel=1e-12)


@pytest.mark.parametrize("direction", ["adam", "sgd"])
def test_given_step_sizes(direction: str) -> None:
    rng = np.random.default_rng(3)
    start, gradients = rng.normal(size=N), rng.normal(size=(STEPS, N))
    gammas = rng.uniform(0, 0.1, STEPS)
    found = javascript.ask(
        "given", start=start, gradients=gradients, gammas=gammas, options={"direction": direction}
    )
    p = param(start)
    make = {
        "adam": lambda: torch.optim.Adam([p], betas=(0.9, 0.95)),
        "sgd": lambda: torch.optim.SGD([p]),
    }
    optimizer = make[direction]()
    for gradient, gamma, answer in zip(gradients, gammas, found, strict=True):
        optimizer.param_groups[0]["lr"] = gamma
        p.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(answer, p.detach(), rtol=1e-9, atol=1e-12)


def test_schedules() -> None:
    """Beside torch's schedulers, where it has them."""
    from torch.optim import lr_scheduler

    steps = 50
    makers = {
        "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1),
        "1/sqrt(t)": lambda o: lr_scheduler.LambdaLR(o, lambda k: (k + 1) ** -0.5),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, steps),
        "warmup-stable-decay": lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.ConstantLR(o, factor=1),
                lr_scheduler.LinearLR(o, 1, 0, total_iters=steps // 5),
            ],
            milestones=[steps - steps // 5],
        ),
        "linear": lambda o: lr_scheduler.LinearLR(o, 1, 0, total_iters=steps),
    }
    found = javascript.ask("schedules", names=list(makers), steps=steps, warmup=0)
    for factors, make in zip(found, makers.values(), strict=True):
        p = param(np.zeros(1))
        p.grad = torch.zeros_like(p)
        optimizer = torch.optim.SGD([p], lr=1.0)
        scheduler = make(optimizer)
        expected = []
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert factors == pytest.approx(expected, rel=1e-9, abs=1e-12)
    (warmed,) = javascript.ask("schedules", names=["constant"], steps=5, warmup=3)
    assert warmed == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    (root,) = javascript.ask("schedules", names=["1/sqrt(t)"], steps=12, warmup=3)
    assert [root[2], root[11]] == pytest.approx([1, 0.5])  # from the peak on


@pytest.mark.parametrize("sizes", [[5, 3], [5, 4, 3]], ids=["logistic", "hidden layer"])
def test_network(sizes: list[int]) -> None:
    """Loss and gradient are autograd's."""
    rng = np.random.default_rng(4)
    images, labels = rng.uniform(0, 1, (9, 5)), rng.integers(0, 3, 9)
    n_weights = sum(o * (i + 1) for i, o in pairwise(sizes))
    weights = torch.tensor(rng.normal(size=n_weights), requires_grad=True)
    indices = [0, 3, 3, 8]
    found = javascript.ask(
        "network",
        sizes=sizes,
        weights=weights.tolist(),
        images=images,
        labels=labels,
        indices=indices,
    )

    def logits(x: Tensor) -> Tensor:
        offset = 0
        for layer, (i, o) in enumerate(pairwise(sizes)):
            x = x.tanh() if layer else x
            matrix = weights[offset : offset + i * o].view(o, i)
            x = x @ matrix.T + weights[offset + i * o : offset + (i + 1) * o]
            offset += (i + 1) * o
        return x

    inputs, targets = torch.tensor(images), torch.tensor(labels)
    loss = torch.nn.functional.cross_entropy(logits(inputs[indices]), targets[indices])
    loss.backward()
    assert weights.grad is not None
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(found["gradient"], weights.grad, rtol=1e-9, atol=1e-13)
    held = torch.nn.functional.cross_entropy(logits(inputs), targets)
    assert found["held"]["loss"] == pytest.approx(held.item(), rel=1e-12)
    right = (logits(inputs).argmax(1) == targets).double().mean()
    assert found["held"]["accuracy"] == pytest.approx(right.item())


def test_least_squares() -> None:
    point = [0.3, -1.2]
    found = javascript.ask("surface", condition=30, noise=0.5, seed=3, point=point)
    a = np.array([row["a"] for row in found["rows"]])
    b = np.array([row["b"] for row in found["rows"]])
    residuals = a @ point - b
    assert found["here"]["loss"] == pytest.approx((residuals**2).mean() / 2)
    assert found["here"]["gradient"] == pytest.approx(a.T @ residuals / len(a))
    assert found["loss"] == pytest.approx(
        found["here"]["loss"]
    )  # of the surface, by its own formula
    assert found["minimum"] == pytest.approx(np.linalg.lstsq(a, b, rcond=None)[0])
    curvatures, axes = np.linalg.eigh(a.T @ a / len(a))
    assert found["curvatures"] == pytest.approx(curvatures)
    steep = np.array([math.cos(found["angle"]), math.sin(found["angle"])])
    assert abs(steep @ axes[:, 1]) == pytest.approx(1)


def test_random_numbers_are_normal() -> None:
    found = np.array(javascript.ask("normals", seed=7, n=20_000))
    assert abs(found.mean()) < 0.03
    assert found.std() == pytest.approx(1, abs=0.03)
    assert (np.abs(found) < 1).mean() == pytest.approx(0.683, abs=0.015)


def excess(beta: float, anneal_steps: int = 0) -> dict[str, float]:
    """Geometric means over 20 draws of the first page's samples, all else as the page opens."""
    settings = {"steps": 300, "gamma": 0.4, "condition": 32, "noise": 0.5}
    draws = javascript.ask("draws", n=20, beta=beta, annealSteps=anneal_steps, **settings)
    return {name: float(np.exp(np.mean([math.log(d[name]) for d in draws]))) for name in draws[0]}


def test_what_the_first_page_says_is_so() -> None:
    """docs/interpolation.md, not for one draw of the samples but in the mean."""
    usual = excess(0.9)
    assert usual["x"] < usual["last"] / 10
    assert usual["x"] < usual["mean"] / 5
    assert usual["x"] < usual["z"] / 50
    assert excess(0.98)["x"] > 2 * usual["x"]
    half = excess(0.5)
    assert half["y"] > 1.5 * half["x"]
    assert half["x"] > 2 * usual["x"]
    assert excess(0.5, 150)["x"] > usual["x"]  # annealing does not pay in so short a run
