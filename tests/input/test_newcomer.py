"""What a new user types and does not mean: each is answered at once, with what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import ROOT, device_of
from torch import Tensor, nn

import sfplus_kernels
from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    AdamWScheduleFreeClosure,
    ScheduleFreeWrapper,
    SFPlusWarning,
    SGDScheduleFree,
)

# no warning unless a test expects it, also of those that random losses give elsewhere
pytestmark = pytest.mark.filterwarnings("error")


def make_model(backend: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(device_of(backend))


def wrapped_sgd(params: Any, **arguments: Any) -> ScheduleFreeWrapper:
    return ScheduleFreeWrapper(torch.optim.SGD(params, lr=0.1), **arguments)


CLASSES: list[Callable[..., Any]] = [
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    SGDScheduleFree,
    AdamWScheduleFreeClosure,
    wrapped_sgd,
]
each_class = pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)


def started(make: Callable[..., Any], backend: str) -> tuple[Any, Tensor]:
    """An optimizer in train mode, its gradients, and the loss that they are of."""
    model = make_model(backend)
    optimizer = make(model.parameters(), backend=backend)
    optimizer.train()
    loss = model(torch.ones(4, 3, device=device_of(backend))).square().mean()
    loss.backward()
    return optimizer, loss.detach()


# -- the step -----------------------------------------------------------------------------------------


@each_class
def test_a_loss_without_its_name(backend: str, make: Callable[..., Any]) -> None:
    optimizer, loss = started(make, backend)
    for value in (loss, float(loss)):
        with pytest.raises(TypeError, match=r"as its closure; .* step\(loss=loss\)"):
            optimizer.step(value)


@pytest.mark.parametrize("coef", [5, 1.001, -0.1, torch.tensor(2.0)])
def test_a_clip_coef_that_enlarges(backend: str, coef: Any) -> None:
    optimizer, loss = started(AdamCScheduleFreePlus, backend)
    with pytest.raises(ValueError, match=r"clip_coef, .* expected a number in \[0, 1\]"):
        optimizer.step(loss=loss, clip_coef=coef)
    optimizer.step(loss=loss, clip_coef=1)
    assert optimizer.metrics()["k"] == 1


def test_a_clip_coef_of_gradients_that_are_not_finite_skips_the_step(backend: str) -> None:
    optimizer, loss = started(AdamCScheduleFreePlus, backend)
    optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
    optimizer.step(loss=loss, clip_coef=torch.tensor(float("nan")))
    assert optimizer.metrics()["skipped_steps"] == 1


# -- construction -------------------------------------------------------------------------------------


PUBLIC = {getattr(sfplus_kernels, name) for name in sfplus_kernels.__all__}
given_parameters = pytest.mark.parametrize(
    "make",
    sorted(
        (
            each
            for each in PUBLIC - {ScheduleFreeWrapper}  # which is given an optimizer
            if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
        ),
        key=lambda each: each.__name__,
    ),
)


@given_parameters
def test_the_model_in_place_of_its_parameters(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"got a model \(Linear\); .* pass model.parameters\(\)"):
        make(nn.Linear(3, 2))


@given_parameters
@pytest.mark.parametrize("shape", [(3, 2), (1,), ()])
def test_a_tensor_in_place_of_a_list(make: Callable[..., Any], shape: tuple[int, ...]) -> None:
    """As with torch's optimizers: an error, except in a group."""
    param, other = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(4))
    with pytest.raises(
        TypeError, match=r"got a lone tensor \(Parameter of shape .* pass \[param\]"
    ):
        make(param)
    optimizer = make([{"params": param}])
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group(other)
    assert [group["params"] for group in optimizer.param_groups] == [[param]]
    optimizer.add_param_group({"params": other})
    assert [group["params"] for group in optimizer.param_groups] == [[param], [other]]


def test_a_tensor_in_place_of_the_optimizer_within() -> None:
    base = torch.optim.SGD([{"params": nn.Parameter(torch.zeros(()))}], lr=0.1)
    for given in (nn.Parameter(torch.zeros(3)), [nn.Parameter(torch.zeros(3))]):
        with pytest.raises(TypeError, match=r"the base is a .*; expected an optimizer of z"):
            ScheduleFreeWrapper(given)  # type: ignore[arg-type]
    optimizer = ScheduleFreeWrapper(base)
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(4))})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


@each_class
def test_an_unknown_name_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]
) -> None:
    monkeypatch.setenv("SFPLUS_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"'gpu' \(SFPLUS_BACKEND\): expected one of .*'cpu'"):
        make(nn.Linear(3, 2).parameters())
    optimizer = make(nn.Linear(3, 2).parameters(), backend="eager")  # the argument wins
    assert optimizer.backend == "eager"


def test_the_orders_of_torchs_arguments() -> None:
    """AdamW's (lr, betas, eps, weight_decay) and SGD's (lr, momentum, dampening, weight_decay)."""
    params = list(nn.Linear(3, 2).parameters())
    with pytest.raises(ValueError, match=r"sf_beta1 is 1e-08; .* AdamW's order"):
        AdamCScheduleFreePlus(params, 1e-3, (0.9, 0.999), 1e-8, 0.01)
    with pytest.raises(ValueError, match=r"warmup_steps is 0.0001; .* by position"):
        SGDScheduleFree(params, 0.1, 0.9, 0, 1e-4)
    # upstream's order, and AdamW's where it is the same
    plus = AdamCScheduleFreePlus(params, 0.5, (0.9, 0.95), 0.8, 1e-6, 5.0)
    adamw = AdamWScheduleFree(params, 1e-3, (0.9, 0.999), 1e-7, 0.01)
    assert [plus.defaults[n] for n in ("sf_beta1", "eps", "weight_decay")] == [0.8, 1e-6, 5.0]
    assert [adamw.defaults[n] for n in ("eps", "weight_decay")] == [1e-7, 0.01]
    assert AdamCScheduleFreePlus(params, sf_beta1=0).defaults["sf_beta1"] == 0


@pytest.mark.parametrize("name", ["warmup_steps", "c_warmup", "sf_beta1_anneal_steps"])
def test_a_share_of_the_run_in_place_of_steps(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0.05; expected a number of steps"):
        AdamCScheduleFreePlus(nn.Linear(3, 2).parameters(), **{name: 0.05})


@pytest.mark.parametrize("make", [AdamWScheduleFree, SGDScheduleFree, AdamWScheduleFreeClosure])
def test_a_decay_that_leaves_nothing_of_the_weights(make: Callable[..., Any]) -> None:
    with pytest.warns(SFPlusWarning, match=r"\[decay-at-lr\]: lr times weight_decay is 50 "):
        make(nn.Linear(3, 2).parameters(), lr=0.1, weight_decay=500)
    with pytest.warns(SFPlusWarning, match=r"\[decay-at-lr\]: lr times weight_decay is 0.09 "):
        make(nn.Linear(3, 2).parameters(), lr=0.03, weight_decay=3)
    make(
        nn.Linear(3, 2).parameters(), lr=0.1, weight_decay=0.4
    )  # no warning, which would be an error


@pytest.mark.parametrize("option", ["fused", "foreach", "amsgrad"])
def test_an_option_of_torchs_is_named(option: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{option}'"):
        AdamCScheduleFreePlus(nn.Linear(3, 2).parameters(), **{option: True})  # type: ignore[arg-type]


# -- which backend ------------------------------------------------------------------------------------


def test_falling_to_eager_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfplus_kernels.backends import registry
    from sfplus_kernels.core import warnings_once

    def hidden(name: str, *rest: Any) -> Any:
        if name in ("sfplus_kernels._C", "sfplus_kernels.backends.native"):
            raise ImportError("not built")
        return load(name, *rest)

    load = registry.importlib.import_module
    monkeypatch.setattr(registry.importlib, "import_module", hidden)
    monkeypatch.setattr(warnings_once, "_said", type(warnings_once._said)())
    params = list(nn.Linear(3, 2).parameters())
    assert AdamWScheduleFree(params, backend="eager").backend == "eager"  # named: no warning
    optimizer = AdamWScheduleFree(params)
    with pytest.warns(
        SFPlusWarning, match=r"\[eager\].*cpu: the compiled extension .*not built"
    ) as w:
        assert optimizer.backend == "eager"
    if (ROOT / "CMakeLists.txt").exists():
        assert "leave that folder" in str(w[0].message)
    assert AdamCScheduleFreePlus(params).backend == "eager"  # not said again
