"""Everyday lines that ruin a run: one warning, mostly from the figures of an older step."""

import re
import warnings
from collections.abc import Callable
from string import Formatter
from typing import Any

import pytest
import torch
from support import ROOT, device_of, make_params, set_gradients
from torch import Tensor, nn

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    ScheduleFreeWrapper,
    SFPlusWarning,
)
from sfplus_kernels.core import warnings_once
from sfplus_kernels.engine import delayed_figures
from sfplus_kernels.engine.runtime import LOOK_EVERY

BATCHES = 1000

# no warning unless a test expects it, also of those that random losses give elsewhere
pytestmark = pytest.mark.filterwarnings("error")


def make_model(backend: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    return layers.to(device_of(backend))


def train(
    model: nn.Module,
    optimizer: Any,
    steps: int,
    step: Callable[[Any, Tensor], Any] = lambda optimizer, loss: optimizer.step(loss=loss),
    objective: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> None:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(1)
    optimizer.train()
    for _ in range(steps):
        x = torch.randn(16, 8, generator=generator)
        noise = torch.randn(16, 3, generator=generator)
        target = (x[:, :3] + 2 * noise).argmax(1).to(device)
        optimizer.zero_grad()
        loss = objective(nn.functional.cross_entropy(model(x.to(device)), target))
        loss.backward()
        step(optimizer, loss.detach())


def clipped(optimizer: Any, loss: Tensor) -> None:
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-3)
    optimizer.step(loss=loss)


def clipped_and_told(optimizer: Any, loss: Tensor) -> None:
    params = optimizer.param_groups[0]["params"]
    norm = nn.utils.clip_grad_norm_(params, 1e-3)
    optimizer.step(loss=loss, clip_coef=(1e-3 / (norm + 1e-6)).clamp(max=1))


def scaled(optimizer: Any, loss: Tensor) -> None:
    """With the scaled loss, of which torch.amp.GradScaler tells the optimizer the scale of the gradients."""
    scale = torch.tensor(2.0**16, device=loss.device)
    for param in optimizer.param_groups[0]["params"]:
        param.grad *= scale
    optimizer.grad_scale, optimizer.found_inf = scale, torch.zeros((), device=loss.device)
    optimizer.step(loss=loss * scale)


def summed(optimizer: Any, loss: Tensor) -> None:
    optimizer.step(loss=loss * BATCHES)


def not_a_number(optimizer: Any, loss: Tensor) -> None:
    optimizer.step(loss=float("nan"))


RUINS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    # what is done at a step, what is said, arguments of the optimizer
    "clipped before": (r"\[gamma\].*max_grad_norm.*clip_coef", clipped, {}),
    "scaled loss": (r"\[gamma\].*GradScaler's scaled one", scaled, {}),
    "summed loss": (r"\[gamma\].*a sum over batches", summed, {}),
    "too much decay": (r"\[decay\].*weight_decay \(5e\+06\)", None, {"weight_decay": 5e6}),
    "decay of a capped gamma": (
        r"\[decay\].*weight_decay \(300\).*step of decay takes away.*or lower max_lr",
        None,
        {"lr": 1.0, "max_lr": 0.03, "weight_decay": 300.0},
    ),
    "NaN losses": (r"\[skipped\]: 1\d steps in a row", not_a_number, {}),
}


@pytest.mark.parametrize("ruin", RUINS)
def test_what_ruins_a_run_is_told_once(backend: str, ruin: str) -> None:
    said, step, arguments = RUINS[ruin]
    model = make_model(backend)
    optimizer = AdamCScheduleFreePlus(
        model.parameters(), **{"lr": 0.3, **arguments}, backend=backend
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 3 * LOOK_EVERY + 1, *([step] if step else []))
    texts = [str(w.message) for w in caught if w.category is SFPlusWarning]
    names = [text.partition("]")[0] for text in texts]
    assert len(names) == len(set(names))
    assert any(re.search(said, text) for text in texts), texts
    assert all(w.filename == __file__ for w in caught if w.category is SFPlusWarning)


@pytest.mark.parametrize("step", [None, clipped_and_told], ids=["plain", "clipped and told"])
def test_a_healthy_run_hears_nothing(backend: str, step: Any) -> None:
    """A warning would be an error."""
    model = make_model(backend)
    optimizer = AdamCScheduleFreePlus(
        model.parameters(), lr=0.3, weight_decay=5.0, warmup_steps=10, backend=backend
    )
    train(model, optimizer, 60 if backend != "triton" else 20, *([step] if step else []))
    assert optimizer.metrics()["k"] >= 20


@pytest.mark.parametrize(
    ("objective", "arguments"),
    [(lambda loss: loss - 100, {}), (lambda loss: loss, {"f_star": 100.0})],
    ids=["negative loss", "f_star above the loss"],
)
def test_a_loss_below_f_star(backend: str, objective: Any, arguments: dict[str, Any]) -> None:
    model = make_model(backend)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = AdamCScheduleFreePlus(model.parameters(), **arguments, backend=backend)
    with pytest.warns(SFPlusWarning, match=r"\[gamma-zero\].*for 5\d steps.*f_star") as caught:
        train(model, optimizer, 70, objective=objective)
    assert len(caught) == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_gamma_of_zero_above_f_star_takes_longer_to_be_told() -> None:
    """In a good run that is so in many single steps, which looks may hit one after the other."""
    torch.manual_seed(0)
    model, generator = nn.Linear(4, 1), torch.Generator().manual_seed(1)
    optimizer = AdamCScheduleFreePlus(model.parameters(), backend="cpu")
    optimizer.train()

    def go(steps: int, part: float) -> None:
        for _ in range(steps):
            loss = model(torch.randn(16, 4, generator=generator)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss.detach() * part)

    go(5, 1.0)
    go(200, 1e-6)  # a warning would be an error
    assert optimizer.metrics()["scheduled_lr"] == [0.0]
    said = r"\[gamma-zero\].*for 4\d\d steps.*only a part"
    with pytest.warns(SFPlusWarning, match=said) as caught:
        go(230, 1e-6)
    assert len(caught) == 1


def test_a_frozen_backbone(backend: str) -> None:
    """gamma grows like one over the square root of the number of parameters that are trained."""
    model = make_model(backend)
    model[0].requires_grad_(False)
    optimizer = AdamCScheduleFreePlus(model[2].parameters(), backend=backend)
    with pytest.warns(SFPlusWarning, match=r"\[gamma\].*frozen backbone\): set max_lr"):
        train(model, optimizer, 6 * LOOK_EVERY)


def test_the_remedy_is_one(backend: str) -> None:
    """With the cap that the warning asks for the same run hears nothing, and learns."""
    model = make_model(backend)
    model[0].requires_grad_(False)
    optimizer = AdamCScheduleFreePlus(model[2].parameters(), max_lr=0.03, backend=backend)
    train(model, optimizer, 8 * LOOK_EVERY)  # a warning would be an error
    figures = optimizer.metrics()
    assert figures["capped"] == [1.0]
    assert figures["function_value"] < 1.1  # that of equal odds is log(3)


def test_a_gamma_that_jumps_up_to_its_cap(backend: str) -> None:
    model = make_model(backend)
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=1e-4, max_lr=0.01, backend=backend)
    train(model, optimizer, 4 * LOOK_EVERY)
    assert optimizer.metrics()["capped"] == [0.0]
    with pytest.warns(SFPlusWarning, match=r"\[gamma-jump\]"):
        train(model, optimizer, 2 * LOOK_EVERY, summed)
    assert optimizer.metrics()["scheduled_lr"] == [0.01]


def test_a_gamma_that_jumps(backend: str) -> None:
    """The loss is right for a while, and then it is another one; gamma is still below the limit."""
    model = make_model(backend)
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=1e-4, backend=backend)
    train(model, optimizer, 4 * LOOK_EVERY)
    with pytest.warns(
        SFPlusWarning, match=r"\[gamma-jump\].*in the early steps.*set max_lr"
    ) as caught:
        train(model, optimizer, 2 * LOOK_EVERY, summed)
    assert len(caught) == 1


def test_skipped_steps_of_a_class_without_a_polyak_step(backend: str) -> None:
    model = make_model(backend)
    optimizer = AdamWScheduleFree(model.parameters(), skip_nonfinite=True, backend=backend)
    with pytest.warns(SFPlusWarning, match=r"\[skipped\]: 1\d steps in a row"):
        train(model, optimizer, 3 * LOOK_EVERY, objective=lambda loss: loss * float("nan"))


# -- how it is told -----------------------------------------------------------------------------------


def test_a_learning_rate_that_falls_is_found() -> None:
    """Once; not where it rises, and not where it is that of the base of a wrapper."""
    for make in (AdamWScheduleFree, AdamWScheduleFreeClosure, AdamCScheduleFreePlus):
        optimizer = make(params := make_params([(3,)]), lr=0.1)
        optimizer.train()

        def step(lr: float, optimizer: Any = optimizer, params: Any = params) -> None:
            optimizer.param_groups[0]["lr"] = lr

            def closure() -> float:
                set_gradients(params, [torch.ones(3)])
                return 1.0

            optimizer.step(closure)

        for lr in (0.01, 0.1, 0.1):
            step(lr)
        with pytest.warns(SFPlusWarning, match=r"\[scheduler\] *: lr was lowered from 0.1 to 0.09"):
            step(0.09)
        step(0.08)
    wrapper = ScheduleFreeWrapper(torch.optim.SGD(params := make_params([(3,)]), lr=0.1))
    wrapper.train()
    for lr in (0.1, 0.05):
        wrapper.param_groups[0]["lr"] = lr
        set_gradients(params, [torch.ones(3)])
        wrapper.step()


def test_as_an_error_it_leaves_the_optimizer_as_it_was(backend: str) -> None:
    """It is raised before the step, which can be taken then."""
    model = make_model(backend)
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.3, backend=backend)
    raised = 0
    for _ in range(2 * LOOK_EVERY):
        before = int(optimizer.metrics()["k"])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SFPlusWarning)
                warnings.filterwarnings("ignore", r"sfplus_kernels \[(decay|skipped)\]")
                train(model, optimizer, 1, summed)
        except SFPlusWarning:
            raised += 1
            assert optimizer.metrics()["k"] == before
    assert raised == 1


def test_nothing_waits_for_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that are still under way are not looked at; the look comes when one has arrived."""

    class Event:
        arrived = False

        def query(self) -> bool:
            return self.arrived

    send = delayed_figures.DelayedFigures.send

    def send_slowly(self: Any) -> None:
        send(self)
        self._under_way = type(self._under_way)((Event(), copy) for _, copy in self._under_way)

    monkeypatch.setattr(delayed_figures.DelayedFigures, "send", send_slowly)
    model = make_model("cpu")
    optimizer = AdamCScheduleFreePlus(model.parameters(), backend="cpu")
    train(model, optimizer, 2 * LOOK_EVERY, not_a_number)  # no warning, which would be an error
    monkeypatch.setattr(Event, "arrived", True)
    with pytest.warns(SFPlusWarning, match=r"\[skipped\]"):
        train(model, optimizer, LOOK_EVERY, not_a_number)


def test_every_text_says_what_to_do_and_is_given_once_for_each_owner() -> None:
    places = [Formatter().parse(text) for text in warnings_once.TEXTS.values()]
    values = {name: 1.0 for text in places for _, name, _, _ in text if name}

    class Owner:
        pass

    owners = Owner(), Owner()
    for name in warnings_once.TEXTS:
        for owner in owners:
            with pytest.warns(SFPlusWarning, match=rf"^sfplus_kernels \[{name}\]: "):
                warnings_once.warn_once(owner, name, **values)
            warnings_once.warn_once(owner, name, **values)  # no second one, which would be an error


def test_every_warning_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [name for name in warnings_once.TEXTS if f"`[{name}]`" not in page] == []


def test_a_group_that_is_added_where_the_figures_are_of_before() -> None:
    """Whichever step it is that looks at them."""
    for steps in range(1, 20):
        old, new = make_params([(3,), (4,)])
        optimizer = AdamCScheduleFreePlus([old])
        optimizer.train()
        for k in range(steps + 1):
            if k == steps:
                optimizer.add_param_group({"params": [new]})
            old.grad = torch.ones_like(old)
            optimizer.step(loss=1.5)
        assert optimizer.metrics()["k"] == steps + 1
